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
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import PicksFormatError
from .picks_table import TomogramFrame, checked_picks, make_picks
from .text_table import all_fixed, all_significant, significant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

__all__ = ["dump_star", "load_star"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_log = logging.getLogger(__name__)

_CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
_UNBINNED = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
_ORIGINS_ANGSTROM = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
_ORIGINS_PIXELS = tuple(f"rlnOrigin{axis}" for axis in "XYZ")
_SUBTOMOGRAM_ANGLES = tuple(f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi"))
_NAMES = ("rlnTomoName", "rlnMicrographName")
_SCORES = ("rlnAutopickFigureOfMerit", "rlnLCCmax", "ptmLCCmax")
_TEXT_COLUMNS = [*_NAMES, "rlnTomoParticleName", "rlnOpticsGroupName", "class_name"]
_SPENT = {*_CENTRED, *_UNBINNED, *_ORIGINS_ANGSTROM, *_ORIGINS_PIXELS, *_NAMES, *_SCORES}
"""Columns that the picks table holds in another form."""

_SUFFIX = re.compile(r"(\.(tomostar|mrcs?|rec|st|map|em|zarr|gz|bz2))+$", re.IGNORECASE)


# -- writing ------------------------------------------------------------------------------------


def dump_star(table: pd.DataFrame, frame: TomogramFrame, *, version: Literal[4, 5] = 5) -> bytes:
    """Return the bytes of a particles STAR file with an optics and a particles block.

    Parameters
    ----------
    table
        Picks. ``tomogram_name``, where it is a column, names each pick's tomogram.
    frame
        Spacing and, for RELION 5, shape of the tomogram; the name where the table has none.
        The tilt series' pixel size is written to the optics block if it is given: RELION divides
        by it, so that the voxel spacing of a binned tomogram must not stand in for it.
    version
        5: centred Å. 4: unbinned pixels, which need the tilt series' pixel size.

    Raises
    ------
    SpacingError, PicksFormatError
        Where the frame lacks what the positions need; says what to pass.

    Examples
    --------
    >>> frame = TomogramFrame(voxel_spacing_angstrom=10.0, shape=(100, 200, 200), name="TS_01")
    >>> text = dump_star(make_picks([[50, 100, 101]], [0.75]), frame).decode()
    >>> text.splitlines()[-2].split()
    ['TS_01', '10.000000', '0.000000', '0.000000', '1', 'TS_01/1', '0.75']
    """
    picks = checked_picks(table)
    xyz = _centred_from(picks, frame) if version == 5 else _unbinned_from(picks, frame)
    columns = _particle_columns(picks, frame, _CENTRED if version == 5 else _UNBINNED, xyz)
    comment = "# version 50001" if version == 5 else "# version 30001"
    blocks = {"optics": _optics_columns(columns, frame), "particles": columns}
    text = "\n".join(f"{comment}\n\n{_block(name, block)}" for name, block in blocks.items())
    return f"\n{text}\n".encode()


def _centred_from(picks: pd.DataFrame, frame: TomogramFrame) -> Numbers:
    """Return x, y, z in Å from the tomogram's centre."""
    spacing = frame.need_spacing("STAR file")
    return (picks[["x", "y", "z"]].to_numpy() - _centre_xyz(frame, "STAR file")) * spacing


def _unbinned_from(picks: pd.DataFrame, frame: TomogramFrame) -> Numbers:
    """Return x, y, z in unbinned pixels."""
    scale = frame.need_spacing("STAR file") / frame.need_pixel_size("STAR file")
    return picks[["x", "y", "z"]].to_numpy() * scale


def _centre_xyz(frame: TomogramFrame, where: object) -> Numbers:
    """Return the voxel that centred coordinates count from, on x, y, z."""
    half = np.array(frame.need_shape(where)[::-1], np.float64) / 2
    if frame.centre == "half":
        return half
    return half - frame.need_pixel_size(where) / frame.need_spacing(where)


def _particle_columns(
    picks: pd.DataFrame, frame: TomogramFrame, position_names: Sequence[str], xyz: Numbers
) -> dict[str, list[str]]:
    """Return the particles block as columns of text; our own columns come last."""
    names = _tomogram_names(picks, frame)
    columns = {"rlnTomoName": names}
    for name, values in zip(position_names, xyz.T, strict=True):
        columns[name] = all_fixed(values, 6)
    columns["rlnOpticsGroup"] = ["1"] * len(picks)
    columns["rlnTomoParticleName"] = _particle_names(names)
    if picks["score"].notna().all():
        columns["rlnAutopickFigureOfMerit"] = all_significant(picks["score"])
    for name in picks.columns:
        if name not in {"z", "y", "x", "score", "tomogram_name", *_SPENT}:
            columns[re.sub(r"\s+", "_", name)] = [_text(value) for value in picks[name]]
    return columns


def _tomogram_names(picks: pd.DataFrame, frame: TomogramFrame) -> list[str]:
    if "tomogram_name" in picks.columns:
        return [str(name) for name in picks["tomogram_name"]]
    if frame.name is None:
        raise PicksFormatError(
            "STAR file: each particle names its tomogram and no name is known; "
            "pass tomogram_name (--tomogram-name)"
        )
    return [frame.name] * len(picks)


def _particle_names(tomograms: Sequence[str]) -> list[str]:
    """Return NAME/1, NAME/2, ... counted in each tomogram."""
    seen: dict[str, int] = {}
    names = []
    for tomogram in tomograms:
        seen[tomogram] = seen.get(tomogram, 0) + 1
        names.append(f"{tomogram}/{seen[tomogram]}")
    return names


def _optics_columns(
    particles: Mapping[str, list[str]], frame: TomogramFrame
) -> dict[str, list[str]]:
    groups = sorted(set(particles["rlnOpticsGroup"]) or {"1"}, key=int)
    columns = {
        "rlnOpticsGroup": groups,
        "rlnOpticsGroupName": [f"opticsGroup{group}" for group in groups],
    }
    if frame.tilt_series_pixel_size_angstrom is not None:
        pixel = significant(frame.tilt_series_pixel_size_angstrom)
        columns["rlnTomoTiltSeriesPixelSize"] = [pixel] * len(groups)
    return columns


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return significant(float(value))
    return str(value)


def _quoted(cell: str) -> str:
    """Return a cell as one STAR word."""
    is_one_word = cell.split() == [cell] and cell[0] not in "#_'"
    return cell if is_one_word else f'"{cell}"'


def _block(name: str, columns: Mapping[str, list[str]]) -> str:
    header = "\n".join(f"_{column} #{number}" for number, column in enumerate(columns, 1))
    rows = zip(*columns.values(), strict=True)
    lines = "".join(" ".join(_quoted(cell) for cell in row) + "\n" for row in rows)
    return f"data_{name}\n\nloop_\n{header}\n{lines}"


# -- reading ------------------------------------------------------------------------------------


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
    blocks = _blocks(path)
    particles = _of_tomogram(_particles(blocks, path), frame, path)
    zyx = _voxels(particles, blocks.get("optics"), frame, path)[:, ::-1]
    score = next((particles[name] for name in _SCORES if name in particles.columns), None)
    picks = make_picks(zyx, score)
    name = next((name for name in _NAMES if name in particles.columns), None)
    if name is not None:
        picks["tomogram_name"] = particles[name].astype(str)
    rest = [column for column in particles.columns if column not in _SPENT]
    return checked_picks(picks.join(particles[rest]), path)


def _blocks(path: Path) -> dict[str, pd.DataFrame]:
    """Return the blocks of a STAR file as tables; a block without a loop is a table of one row."""
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
    for names in (_CENTRED, _UNBINNED):
        for block in blocks.values():
            if set(names) <= set(block.columns):
                return block.reset_index(drop=True)
    raise PicksFormatError(
        f"{path}: expected a block with {_CENTRED[0]} or {_UNBINNED[0]}, "
        f"found blocks {sorted(blocks)}; give a particles file"
    )


def _stem(name: str) -> str:
    return _SUFFIX.sub("", re.split(r"[\\/]", name)[-1])


def _of_tomogram(particles: pd.DataFrame, frame: TomogramFrame, path: Path) -> pd.DataFrame:
    """Return the rows of the tomogram that the frame names; all rows without a name."""
    column = next((name for name in _NAMES if name in particles.columns), None)
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
    if set(_CENTRED) <= set(particles.columns):
        spacing = frame.need_spacing(path)
        shift = _offsets(particles, pixel)
        return (_numbers(particles, _CENTRED, path) - shift) / spacing + _centre_xyz(frame, path)
    coordinates = _numbers(particles, _UNBINNED, path)
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
    if set(_ORIGINS_ANGSTROM) <= set(particles.columns):
        shift = particles[list(_ORIGINS_ANGSTROM)].to_numpy(np.float64)
    elif set(_ORIGINS_PIXELS) <= set(particles.columns) and pixel is not None:
        shift = particles[list(_ORIGINS_PIXELS)].to_numpy(np.float64) * pixel[:, None]
    else:
        return np.zeros((len(particles), 3))
    if len(shift) == 0 or not set(_SUBTOMOGRAM_ANGLES) <= set(particles.columns):
        return shift
    from scipy.spatial.transform import Rotation

    angles = particles[list(_SUBTOMOGRAM_ANGLES)].to_numpy(np.float64)
    # RELION's matrix for rot, tilt, psi is the inverse of the intrinsic ZYZ rotation
    return np.asarray(Rotation.from_euler("ZYZ", angles, degrees=True).inv().apply(shift))
