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
5. ``rlnAngleRot/Tilt/Psi`` become the picks' angles, behind ``rlnTomoSubtomogramRot/Tilt/Psi``
   where a file has these too: RELION's matrix is the subtomogram's times the particle's.
6. M's columns (``wrpCoordinateX1``) and Warp's fractions of the tomogram: `star_warp`.
7. ``rlnClassNumber`` is ``class_number``. A particle gets the columns of its optics group.

The file names no time and no machine, so the same picks give the same bytes.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError
from .orientation import angles_from_matrices, matrices_from_angles, with_angles
from .picks_table import TomogramFrame, checked_picks, make_picks
from .star_optics import numbers_of, pixel_sizes, with_optics
from .star_warp import IN_ANGSTROM, are_fractions, with_relion_names
from .star_write import (
    CENTRED,
    ORIGINS_ANGSTROM,
    ORIGINS_PIXELS,
    STAR_ANGLES,
    TOMOGRAM_NAMES,
    UNBINNED,
    StarVersion,
    centre_xyz,
    dump_star,
    star_pieces,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

__all__ = ["StarVersion", "dump_star", "load_star", "read_star_blocks", "star_pieces"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_log = logging.getLogger(__name__)

_SUBTOMOGRAM_ANGLES = tuple(f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi"))
_SCORES = ("rlnAutopickFigureOfMerit", "rlnLCCmax", "ptmLCCmax")
_CELL = re.compile(r"""\"[^\"]*\"|'[^']*'|[^\s#]\S*""")
_OTHER_FILES = {
    "rlnTomoHand": " of tomograms or tilt series",
    "rlnTomoNominalStageTiltAngle": " of the images of a tilt series",
}
"""What a STAR file without particles is, by a column; the first that is there tells."""
_RENAMED = {"rlnClassNumber": "class_number"}
_TEXT_COLUMNS = [
    *TOMOGRAM_NAMES, "rlnTomoParticleName", "rlnOpticsGroupName", "class_name", "tomogram_name",
]  # fmt: skip


def load_star(path: Path, frame: TomogramFrame) -> pd.DataFrame:
    """Read the particles of a STAR file.

    Parameters
    ----------
    path
        A file with a block that has coordinate columns, whatever the block's name.
    frame
        Voxel spacing, for centred coordinates also the shape.
        ``tilt_series_pixel_size_angstrom`` overrides the pixel size that the file gives.

    Returns
    -------
    DataFrame
        A picks table with ``tomogram_name`` and angles; the other columns keep their names.

    Raises
    ------
    PicksFormatError
        Where the file holds no particles, or lacks an optics group.
    SpacingError
        Where positions cannot be turned into voxels; says what to pass.
    """
    blocks = read_star_blocks(path)
    particles = with_optics(_particles(blocks, path), blocks.get("optics"), path)
    score = next((name for name in _SCORES if name in particles.columns), None)
    picks = make_picks(_voxels(particles, frame, path)[:, ::-1])
    if score is not None:
        picks["score"] = numbers_of(particles, [score], path)[:, 0]
    name = next((name for name in TOMOGRAM_NAMES if name in particles.columns), None)
    if name is not None:
        picks["tomogram_name"] = particles[name].fillna("").astype(str)
    picks = _with_orientation(picks, particles, path)
    spent = {score, name, IN_ANGSTROM, *CENTRED, *UNBINNED, *ORIGINS_ANGSTROM, *ORIGINS_PIXELS}
    spent |= {*STAR_ANGLES, *_SUBTOMOGRAM_ANGLES} if "rot_degrees" in picks.columns else set()
    rest = particles[[column for column in particles.columns if column not in spent]]
    clear = {old: new for old, new in _RENAMED.items() if new not in rest.columns}
    return checked_picks(picks.join(rest.rename(columns=clear)), path)


def _with_orientation(picks: pd.DataFrame, particles: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add the angles of particles, behind those of their subtomograms."""
    own = set(STAR_ANGLES) <= set(particles.columns)
    angles = numbers_of(particles, STAR_ANGLES, path) if own else np.zeros((len(particles), 3))
    outer = _outer_angles(particles, path)
    if outer is not None and outer.any():
        whole = matrices_from_angles(outer) @ matrices_from_angles(np.nan_to_num(angles))
        return with_angles(picks, angles_from_matrices(whole))
    return with_angles(picks, angles) if own else picks


def _outer_angles(particles: pd.DataFrame, path: Path) -> Numbers | None:
    """Return the angles of subtomograms, where the file has them."""
    if not set(_SUBTOMOGRAM_ANGLES) <= set(particles.columns):
        return None
    return np.nan_to_num(numbers_of(particles, _SUBTOMOGRAM_ANGLES, path))


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
        _refuse_uneven_rows(path)
        raise PicksFormatError(
            f"{path}: expected a STAR file, found text that cannot be parsed ({error}); "
            "is the file complete?"
        ) from error
    found = {
        name: block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
        for name, block in blocks.items()
    }
    # starfile fills a row that is cut short with NaN, in a column of texts with nothing
    ends = [block.iloc[:, -1] for block in found.values() if len(block.columns)]
    if any((end.isna() | end.isin(["", "nan"])).any() for end in ends):
        _refuse_uneven_rows(path)
    return found


def _refuse_uneven_rows(path: Path) -> None:
    """Raise `PicksFormatError` that names the first row with more or fewer cells than columns."""
    n_columns, in_loop = 0, False
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text.startswith(("data_", "loop_")):
                n_columns, in_loop = 0, text.startswith("loop_")
            elif text.startswith("_"):
                n_columns += 1
            elif in_loop and n_columns and text and not text.startswith("#"):
                n_cells = len(_CELL.findall(text))
                if n_cells != n_columns:
                    raise PicksFormatError(
                        f"{path}, line {number}: expected {n_columns} cells, one for each column, "
                        f"found {n_cells}; is the file complete?"
                    )


def _particles(blocks: Mapping[str, pd.DataFrame], path: Path) -> pd.DataFrame:
    for names in (CENTRED, UNBINNED):
        for block in map(with_relion_names, blocks.values()):
            if set(names) <= set(block.columns):
                return block.reset_index(drop=True)
    columns = {name for block in blocks.values() for name in block.columns}
    kind = next((kind for name, kind in _OTHER_FILES.items() if name in columns), "")
    raise PicksFormatError(
        f"{path}: expected a block with {CENTRED[0]} or {UNBINNED[0]}, "
        f"found blocks {sorted(blocks)}{kind}; give a particles file"
    )


def _voxels(particles: pd.DataFrame, frame: TomogramFrame, path: Path) -> Numbers:
    """Return x, y, z in voxels, refinement offsets applied."""
    if IN_ANGSTROM in particles.columns:
        return numbers_of(particles, UNBINNED, path) / frame.need_spacing(path)
    pixel = pixel_sizes(particles, frame, path)
    if set(CENTRED) <= set(particles.columns):
        spacing = frame.need_spacing(path)
        shift = _offsets(particles, pixel, path)
        return (numbers_of(particles, CENTRED, path) - shift) / spacing + centre_xyz(frame, path)
    coordinates = numbers_of(particles, UNBINNED, path)
    if pixel is None and are_fractions(coordinates):
        _log.warning(
            "%s: no pixel size found and positions from 0 to 1; they are taken as fractions of the "
            "tomogram's size, as Warp's template matching writes them", path,
        )  # fmt: skip
        shape = frame.need_shape(path, "positions are fractions of the tomogram's size")
        return coordinates * shape[::-1] - _offsets_in_voxels(particles, frame, path)
    if pixel is None:
        _log.warning(
            "%s: no pixel size found; its coordinates are taken as voxels of the tomogram", path
        )
        return coordinates - _offsets_in_voxels(particles, frame, path)
    spacing = frame.need_spacing(path)
    return (coordinates * pixel[:, None] - _offsets(particles, pixel, path)) / spacing


def _offsets_in_voxels(particles: pd.DataFrame, frame: TomogramFrame, path: Path) -> Numbers:
    """Return the offsets of a file that says no pixel size, whose pixels are voxels."""
    if not set(ORIGINS_ANGSTROM) <= set(particles.columns):
        return _offsets(particles, np.ones(len(particles)), path)
    shift = _offsets(particles, None, path)
    return shift / frame.need_spacing(path) if shift.any() else shift


def _offsets(particles: pd.DataFrame, pixel: Numbers | None, path: Path) -> Numbers:
    """Return the offsets x, y, z in Å that refinement found, in the tomogram's axes."""
    if set(ORIGINS_ANGSTROM) <= set(particles.columns):
        shift = numbers_of(particles, ORIGINS_ANGSTROM, path)
    elif set(ORIGINS_PIXELS) <= set(particles.columns) and pixel is not None:
        shift = numbers_of(particles, ORIGINS_PIXELS, path) * pixel[:, None]
    else:
        return np.zeros((len(particles), 3))
    shift = np.nan_to_num(shift)  # a particle that was not refined has no offset
    outer = _outer_angles(particles, path)
    if outer is None or not len(shift):
        return shift
    return np.einsum("nij,nj->ni", matrices_from_angles(outer), shift)
