"""A particle list to a volume of spheres: a mask, classes or labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ConfigError, SpacingError
from ...core.geometry import Box, Grid, Vec
from ...core.volume import VolumeHeader
from ...engine import check_budget, fingerprint, map_chunks, request_key
from ...io.picks import read_picks
from ...io.picks_table import check_one_tomogram, of_class
from ...io.volumes import open_volume
from ...particles.spheres import (
    SphereOp,
    meets_box,
    radii_of,
    smallest_type,
    sphere_rows,
    values_of,
    write_sphere_table,
)
from ..volume_output import volume_output

if TYPE_CHECKING:
    from pathlib import Path

    from ...particles.spheres import SphereSettings
    from ..session import Session
    from ..volume_output import VolumeOutput

__all__ = ["BlankVolume", "PaintReport", "paint_picks"]

log = logging.getLogger("deepict_dask")
_HALF_DIAGONAL = 3**0.5 / 2
"""A sphere of at least this radius holds a voxel wherever its centre is."""


@dataclass(frozen=True)
class BlankVolume:
    """A volume of zeros that no file holds: the canvas of tasks that read nothing.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> BlankVolume(VolumeHeader((2, 2, 2), "uint8")).read(Box((0, 0, 0), (1, 1, 2))).tolist()
    [[[0, 0]]]
    """

    header: VolumeHeader
    path: str = "blank volume"

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """Return zeros over the box, zyx."""
        return np.zeros(box.shape, self.header.dtype)


@dataclass(frozen=True)
class PaintReport:
    """What was painted."""

    n_picks: int
    """Picks painted, wholly or in part."""
    dtype: str
    legend: dict[int, str] = field(default_factory=dict)
    """What the numbers mean where they stand for texts."""


def paint_picks(
    session: Session,
    picks: Path,
    target: Path,
    settings: SphereSettings,
    *,
    like: Path | None = None,
    shape: Vec | None = None,
    tomogram_name: str | None = None,
) -> PaintReport:
    """Paint a sphere at each pick of a list; the target's ending picks the format.

    Parameters
    ----------
    session
        Workers and wishes; its voxel spacing overrides that of ``like``.
    picks
        A particle list of any format.
    target
        Volume to make: uint8, uint16 or uint32, whichever holds the values (float32 for values
        that are not whole, and with ``compat``), 0 outside of spheres.
    settings
        Radius and value.
    like
        A volume whose shape, spacing and origin the target takes.
    shape
        Instead: voxels on z, y, x.
    tomogram_name
        Only the picks of this tomogram, where the list names tomograms.

    Raises
    ------
    ConfigError
        Not one of ``like`` and ``shape`` is given, or there is no such class.
    SpacingError
        A radius in nm, or positions in Å, without a voxel spacing.
    PicksFormatError
        The list cannot be read, or lacks a column.
    OutputExistsError
        The target exists.
    """
    if (like is None) == (shape is None):
        raise ConfigError("to-mask: expected one of --like VOLUME and --shape Z,Y,X")
    request = {
        "job": "paint", "input": fingerprint(picks), "like": like and fingerprint(like),
        "shape": shape, "settings": settings.model_dump(mode="json"), "tomogram": tomogram_name,
        "spacing": session.voxel_spacing_angstrom, "chunks": session.chunks,
    }  # fmt: skip
    with volume_output(session, target, request_key(request)) as output:
        canvas = _canvas(session, like, shape, output.scratch)
        rows, legend = _spheres(picks, canvas, settings, tomogram_name)
        dtype = "float32" if settings.compat else smallest_type(rows["value"])
        blank = BlankVolume(replace(canvas, dtype=dtype), str(picks))
        _paint(session, blank, rows, output, compat=settings.compat is not None)
    return PaintReport(len(rows), dtype, legend)


def _paint(
    session: Session,
    blank: BlankVolume,
    rows: np.ndarray[Any, Any],
    output: VolumeOutput,
    *,
    compat: bool,
) -> None:
    """Write the spheres of all rows over the blank volume, a chunk in each task."""
    sink = output.sink(blank.header, session.chunks)
    grid = Grid(blank.header.shape, sink.write_shape)
    table = write_sphere_table(output.staged.partial / "spheres", rows, grid)
    op = SphereOp(table, blank.header.dtype, table.most_rows(), compat=compat)
    check_budget("paint", op.bytes_needed(grid.window_shape), session.workers.memory_bytes)
    with (
        output.ledger(grid) as ledger,
        session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
    ):
        map_chunks(session.workers, op, [blank], sink, grid, ledger=ledger, on_done=advance)


def _canvas(session: Session, like: Path | None, shape: Vec | None, scratch: Path) -> VolumeHeader:
    """Return the shape, spacing and origin of the volume to make."""
    spacing = session.voxel_spacing_angstrom
    if like is None:
        return VolumeHeader(shape or (1, 1, 1), "uint8", spacing)
    opened = open_volume(
        like, voxel_spacing_angstrom=spacing, scratch=scratch, spacing_required=False
    )
    return replace(opened.header, class_names=())


def _spheres(
    picks: Path, canvas: VolumeHeader, settings: SphereSettings, tomogram_name: str | None
) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
    """Return the spheres that reach the volume, and the meaning of their values."""
    spacing = canvas.voxel_spacing_angstrom
    table = read_picks(
        picks,
        voxel_spacing_angstrom=spacing,
        tomogram_shape=canvas.shape,
        tomogram_name=tomogram_name,
    )
    check_one_tomogram(table, picks, "choose one with --tomogram-name")
    values, legend = values_of(table, settings)
    radii = radii_of(table, settings, _one_radius(settings, spacing))
    rows = sphere_rows(table[["z", "y", "x"]].to_numpy(np.float64), radius=radii, values=values)
    rows = rows[of_class(table, settings.class_name, picks)]
    _warn(rows, settings, picks)
    return rows[meets_box(rows, Box.whole(canvas.shape))], legend


def _one_radius(settings: SphereSettings, spacing: float | None) -> float | None:
    """Return the radius of all spheres in voxels; None where each pick has its own."""
    if settings.radius_nm is None:
        return settings.radius
    if spacing is None:
        raise SpacingError(
            "to-mask: the radius is in nm and the size of a voxel is not known; "
            "pass --voxel-spacing-angstrom"
        )
    return settings.radius_nm * 10 / spacing


def _warn(rows: np.ndarray[Any, Any], settings: SphereSettings, picks: Path) -> None:
    """Say what will not be seen in the volume."""
    if len(rows) == 0:
        log.warning("%s: the list is empty: the volume is 0 everywhere", picks)
        return
    if (rows["value"] == 0).any():
        unseen = int((rows["value"] == 0).sum())
        log.warning("%s: %d picks have the value 0, which is background", picks, unseen)
    if settings.compat is None and rows["radius"].min() < _HALF_DIAGONAL:
        log.warning(
            "%s: a radius of %.3g voxels is so small that spheres may hold no voxel",
            picks, rows["radius"].min(),
        )  # fmt: skip
    if settings.compat and (rows["radius"] != np.rint(rows["radius"])).any():
        raise ConfigError("--compat deepict: expected radii of whole voxels, found others")
