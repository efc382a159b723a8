"""Particle lists to one list without duplicates; see `deepict_dask.particles.merge`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...engine import StagedOutput, fingerprint, request_key
from ...io.picks import FORMATS, read_picks, write_picks
from ...particles.deepict_compat import merge_as_deepict, xyz_text
from ...particles.merge import merge_picks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from ...core.geometry import Vec
    from ...particles.merge import MergeSettings

__all__ = ["MergeReport", "merge_lists"]

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class MergeReport:
    """How many picks went in and came out."""

    n_read: int
    n_kept: int


def merge_lists(
    sources: Sequence[Path],
    target: Path,
    settings: MergeSettings,
    *,
    voxel_spacing_angstrom: float | None = None,
    tomogram_shape: Vec | None = None,
    tomogram_name: str | None = None,
    pixel_size_angstrom: float | None = None,
    file_format: str | None = None,
    overwrite: bool = False,
) -> MergeReport:
    r"""Merge particle lists of any format; the target's ending picks its format.

    Parameters
    ----------
    sources
        Particle lists, in order of preference.
    target
        List to make. With ``compat`` a text file has DeePiCt's lines ``x,y,z``.
    settings
        When two picks are one.
    voxel_spacing_angstrom, tomogram_shape, tomogram_name
        Of the tomogram, for formats that need them and for a distance in nm.
    pixel_size_angstrom
        Of the tilt series (unbinned), for STAR files that count in its pixels.
    file_format
        Of the target, where its name does not tell.
    overwrite
        Replace a list.

    Raises
    ------
    PicksFormatError
        A list cannot be read or written.
    SpacingError
        The voxel spacing is needed and not known.
    OutputExistsError
        The target exists.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from deepict_dask.particles.merge import MergeSettings
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.csv").write_text("9,9,9\n"), (folder / "b.csv").write_text("9,9,8\n")
    >>> lists = [folder / "a.csv", folder / "b.csv"]
    >>> merge_lists(lists, folder / "c.csv", MergeSettings(distance=2)).n_kept
    1
    """
    frame: dict[str, Any] = {
        "voxel_spacing_angstrom": voxel_spacing_angstrom, "tomogram_shape": tomogram_shape,
        "tomogram_name": tomogram_name, "tilt_series_pixel_size_angstrom": pixel_size_angstrom,
    }  # fmt: skip
    tables = [read_picks(source, **frame) for source in sources]
    if not tables:
        raise ConfigError("merge: expected at least one particle list, found none")
    request = {
        "job": "merge", "inputs": [fingerprint(source) for source in sources],
        "settings": settings.model_dump(mode="json"), "format": file_format, **frame,
    }  # fmt: skip
    with StagedOutput(target, request_key(request), overwrite=overwrite, marks=()) as staged:
        merged = _merged(tables, settings, voxel_spacing_angstrom)
        made = staged.partial / target.name
        if settings.compat and file_format is None and _is_text(target):
            made.write_text(xyz_text(merged))
        else:
            write_picks(merged, made, file_format=file_format, **frame)
        staged.commit(made.name)
    n_read = sum(len(table) for table in tables)
    if n_read == 0:
        log.warning("%s: all lists are empty, and so is the result", target)
    return MergeReport(n_read, len(merged))


def _merged(
    tables: Sequence[pd.DataFrame], settings: MergeSettings, spacing: float | None
) -> pd.DataFrame:
    axes = settings.semi_axes(spacing)
    if settings.compat:
        return merge_as_deepict(tables, axes)
    return merge_picks(
        tables,
        axes,
        by_score=settings.by_score,
        across_classes=settings.across_classes,
        min_lists=settings.min_lists,
    )


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in FORMATS["csv"].endings
