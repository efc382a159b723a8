"""RELION particle STAR files.

What does a position in a STAR file mean, and which voxel is it?

1. The COLUMNS decide, never the version comment: ``rlnCenteredCoordinateX/Y/ZAngst`` where present
   (RELION 5), else ``rlnCoordinateX/Y/Z`` (RELION 3, 4, Warp).
2. Centred: ``angstrom = (voxel - centre) * voxel_spacing``, with voxel centres at integers and
   ``centre = shape / 2`` on each axis. This is RELION's own rule (it adds size / 2 pixels, half a
   pixel included where a size is odd). So position 0 is voxel n/2: for an even n the centre of that
   voxel, HALF A VOXEL above the middle (n - 1)/2 of the voxel centres; no further half voxel is
   added or taken away. ``centre="half-minus-one"`` puts the origin one UNBINNED pixel lower, as
   some pickers do (3dem/relion#1137): ``centre = shape / 2 - pixel / voxel_spacing``.
3. Uncentred: unbinned pixels of the tilt series, ``pixel = voxel * voxel_spacing / pixel_size``.
   No half pixel for binning: index times binning, as RELION, Warp and pytom-match-pick do.
4. Refinement offsets are applied on reading: ``rlnOriginX/Y/ZAngst`` (pixels: ``rlnOriginX/Y/Z``)
   are subtracted, turned by the subtomogram's own angles where a file gives them.

The file names no time and no machine, so the same picks give the same bytes.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError
from .picks_table import TomogramFrame, checked_picks, make_picks
from .star_write import (
    CENTRED,
    ORIGINS_ANGSTROM,
    ORIGINS_PIXELS,
    SCORES,
    SPENT,
    TOMOGRAM_NAMES,
    UNBINNED,
    centre_xyz,
    dump_star,
    star_pieces,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

__all__ = ["dump_star", "load_star", "read_star_blocks", "star_pieces"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_log = logging.getLogger(__name__)

_SUBTOMOGRAM_ANGLES = tuple(f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi"))
_TEXT_COLUMNS = [*TOMOGRAM_NAMES, "rlnTomoParticleName", "rlnOpticsGroupName", "class_name"]
_SUFFIX = re.compile(r"(\.(tomostar|mrcs?|rec|st|map|em|zarr|gz|bz2))+$", re.IGNORECASE)


def load_star(path: Path, frame: TomogramFrame) -> pd.DataFrame:
    """Read the particles of a STAR file.

    Parameters
    ----------
    path
        A file with a block that has coordinate columns, whatever the block's name.
    frame
        Voxel spacing, for centred coordinates also the shape; with a name, only that tomogram's
        particles are returned ("TS_1" also matches "TS_1.tomostar" and "folder/TS_1.mrc").
        ``tilt_series_pixel_size_angstrom`` overrides the pixel size that the file gives.

    Returns
    -------
    DataFrame
        A picks table with ``tomogram_name``; the other columns keep their names.

    Raises
    ------
    PicksFormatError
        Where the file holds no particles, or none of the tomogram named.
    SpacingError
        Where positions cannot be turned into voxels; says what to pass.
    """
    blocks = read_star_blocks(path)
    particles = _of_tomogram(_particles(blocks, path), frame, path)
    zyx = _voxels(particles, blocks.get("optics"), frame, path)[:, ::-1]
    score = next((particles[name] for name in SCORES if name in particles.columns), None)
    picks = make_picks(zyx, score)
    name = next((name for name in TOMOGRAM_NAMES if name in particles.columns), None)
    if name is not None:
        picks["tomogram_name"] = particles[name].astype(str)
    rest = [column for column in particles.columns if column not in SPENT]
    return checked_picks(picks.join(particles[rest]), path)


def read_star_blocks(path: Path) -> dict[str, pd.DataFrame]:
    r"""Return the blocks of a STAR file as tables; a block without a loop is a table of one row.

    Raises
    ------
    PicksFormatError
        Where the text cannot be parsed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "tomograms.star")
    >>> _ = path.write_text("data_global\nloop_\n_rlnTomoName #1\nTS_01\nTS_02\n")
    >>> list(read_star_blocks(path)["global"]["rlnTomoName"])
    ['TS_01', 'TS_02']
    """
    import pandas as pd
    import starfile

    try:
        blocks = starfile.read(path, always_dict=True, parse_as_string=_TEXT_COLUMNS)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise PicksFormatError(
            f"{path}: expected a STAR file, found text that cannot be parsed ({error}); "
            "is the file complete?"
        ) from error
    return {
        name: block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
        for name, block in blocks.items()
    }


def _particles(blocks: Mapping[str, pd.DataFrame], path: Path) -> pd.DataFrame:
    for names in (CENTRED, UNBINNED):
        for block in blocks.values():
            if set(names) <= set(block.columns):
                return block.reset_index(drop=True)
    raise PicksFormatError(
        f"{path}: expected a block with {CENTRED[0]} or {UNBINNED[0]}, "
        f"found blocks {sorted(blocks)}; give a particles file"
    )


def _stem(name: str) -> str:
    return _SUFFIX.sub("", re.split(r"[\\/]", name)[-1])


def _of_tomogram(particles: pd.DataFrame, frame: TomogramFrame, path: Path) -> pd.DataFrame:
    """Return the rows of the tomogram that the frame names; all rows without a name."""
    column = next((name for name in TOMOGRAM_NAMES if name in particles.columns), None)
    if frame.name is None or column is None or particles.empty:
        return particles
    names = particles[column].astype(str)
    wanted = _stem(frame.name)
    kept = particles[[_stem(name) == wanted for name in names]].reset_index(drop=True)
    if kept.empty:
        found = sorted(set(names))
        raise PicksFormatError(
            f"{path}: expected particles of tomogram {frame.name!r}, found {len(found)} others "
            f"({', '.join(found[:3])}, ...); pass one of these as tomogram_name, or none"
        )
    return kept


def _voxels(
    particles: pd.DataFrame, optics: pd.DataFrame | None, frame: TomogramFrame, path: Path
) -> Numbers:
    """Return x, y, z in voxels, refinement offsets applied."""
    pixel = _pixel_sizes(particles, optics, frame)
    if set(CENTRED) <= set(particles.columns):
        spacing = frame.need_spacing(path)
        shift = _offsets(particles, pixel)
        return (_numbers(particles, CENTRED, path) - shift) / spacing + centre_xyz(frame, path)
    coordinates = _numbers(particles, UNBINNED, path)
    if pixel is None:
        _log.warning(
            "%s: no pixel size found; its coordinates are taken as voxels of the tomogram", path
        )
        return coordinates
    spacing = frame.need_spacing(path)
    return (coordinates * pixel[:, None] - _offsets(particles, pixel)) / spacing


def _numbers(particles: pd.DataFrame, names: Sequence[str], path: Path) -> Numbers:
    try:
        return particles[list(names)].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise PicksFormatError(
            f"{path}: expected numbers in {names[0]}, found {error}; correct the file"
        ) from error


def _pixel_sizes(
    particles: pd.DataFrame, optics: pd.DataFrame | None, frame: TomogramFrame
) -> Numbers | None:
    """Return for each particle the size in Å of the pixels that coordinates count, if known.

    RELION 4 and 5 say it themselves; RELION 3.0 gives a detector pixel in µm and a magnification;
    RELION 3.1 files of Warp count pixels of the exported images.
    """
    if frame.tilt_series_pixel_size_angstrom is not None:
        return np.full(len(particles), frame.tilt_series_pixel_size_angstrom)
    known = _with_optics(particles, optics)
    if "rlnTomoTiltSeriesPixelSize" not in known and "rlnDetectorPixelSize" in known:
        magnification = known.get("rlnMagnification", np.array(1e4))
        return np.asarray(known["rlnDetectorPixelSize"] * 1e4 / magnification, np.float64)
    names = ("rlnTomoTiltSeriesPixelSize", "rlnImagePixelSize", "rlnPixelSize")
    return next((known[name] for name in names if name in known), None)


def _with_optics(particles: pd.DataFrame, optics: pd.DataFrame | None) -> dict[str, Numbers]:
    """Return the pixel size columns, one number per particle, looked up by optics group."""
    names = (
        "rlnTomoTiltSeriesPixelSize",
        "rlnDetectorPixelSize",
        "rlnMagnification",
        "rlnImagePixelSize",
        "rlnPixelSize",
    )
    known = {n: particles[n].to_numpy(np.float64) for n in names if n in particles.columns}
    group = "rlnOpticsGroup"
    if optics is None or group not in particles.columns or group not in optics.columns:
        return known
    rows = optics.drop_duplicates(group).set_index(group).reindex(particles[group])
    return known | {n: rows[n].to_numpy(np.float64) for n in names if n in rows.columns}


def _offsets(particles: pd.DataFrame, pixel: Numbers | None) -> Numbers:
    """Return the offsets x, y, z in Å that refinement found, in the tomogram's axes."""
    if set(ORIGINS_ANGSTROM) <= set(particles.columns):
        shift = particles[list(ORIGINS_ANGSTROM)].to_numpy(np.float64)
    elif set(ORIGINS_PIXELS) <= set(particles.columns) and pixel is not None:
        shift = particles[list(ORIGINS_PIXELS)].to_numpy(np.float64) * pixel[:, None]
    else:
        return np.zeros((len(particles), 3))
    if len(shift) == 0 or not set(_SUBTOMOGRAM_ANGLES) <= set(particles.columns):
        return shift
    from scipy.spatial.transform import Rotation

    angles = particles[list(_SUBTOMOGRAM_ANGLES)].to_numpy(np.float64)
    # RELION's matrix for rot, tilt, psi is the inverse of the intrinsic ZYZ rotation
    return np.asarray(Rotation.from_euler("ZYZ", angles, degrees=True).inv().apply(shift))
