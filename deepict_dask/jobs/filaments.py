"""A mask of filaments to oriented picks along their centrelines.

1. Thin the mask chunk by chunk, with a halo that follows from the thickest filament
   (`SkeletonReduction`). Only numbers of skeleton voxels come back.
2. Prune, link, smooth and resample the skeleton in this process: its memory follows the length of
   the filaments, not the volume.
3. Write the list.

With ``compat: deepict`` one worker does the published script's steps on the whole volume.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.geometry import Box, Grid, as_vec
from ..engine import StagedOutput, check_budget, fingerprint, reduce_chunks, request_key
from ..engine.arrays import naming
from ..engine.spectral import run_whole
from ..filaments import (
    STAR_NAMES,
    FilamentSettings,
    Skeleton,
    SkeletonReduction,
    centrelines,
    filament_table,
)
from ..filaments.deepict_compat import (
    CompatSettings,
    compat_bytes,
    compat_filaments,
    compat_table,
    dump_coordinates,
)
from ..filaments.deepict_config import parse_compat_config
from ..io.datasets.names import short_name
from ..io.picks import write_picks
from ..io.volumes import open_volume

if TYPE_CHECKING:
    import pandas as pd

    from ..core.volume import VolumeReader
    from .session import Session

__all__ = ["FilamentReport", "trace_filaments"]

log = logging.getLogger("deepict_dask")

_TEXT = (".csv", ".txt", ".tsv")
_STAR = ".star"
_SPACING_TOLERANCE = 0.01
_MOST_VOXELS = 5_000_000
"""Of a skeleton; each takes some 500 bytes while it is traced. A cell has some 100,000."""
_IN_THE_CONFIG = ("erode_voxels", "min_length_nm", "step_nm", "max_gap_nm", "max_angle_degrees")


@dataclass(frozen=True)
class FilamentReport:
    """What was found."""

    n_filaments: int
    n_points: int
    length_nm: float
    """Of all filaments together."""


def trace_filaments(
    session: Session,
    mask: Path,
    target: Path,
    settings: FilamentSettings,
    *,
    tomogram_name: str | None = None,
    config: Path | None = None,
) -> FilamentReport:
    """Turn a mask of filaments into oriented picks along their centrelines.

    Parameters
    ----------
    session
        Workers and wishes.
    mask
        Volume: 0 outside; or a label volume of which one label is chosen.
    target
        List to make: ``.csv`` (``.txt``, ``.tsv``) or ``.star``. With ``compat`` a text file has
        the published script's rows, in nm.
    settings
        Lengths and angles.
    tomogram_name
        Name in a STAR file; the mask's by default.
    config
        With ``compat``: the published script's config, which then gives all numbers.

    Raises
    ------
    ConfigError
        The target's ending is none of these, or a config is given without ``compat``.
    SpacingError
        The mask does not say its voxel spacing and none was given.
    VoxelValueError
        The mask has negative voxels or NaN.
    BudgetError
        A chunk with its halo (with ``compat`` the volume) does not fit a worker.
    """
    check_target(target)
    check_config(config, settings)
    mask = mask.absolute()  # workers may run in another folder
    request = {
        "job": "filaments", "input": fingerprint(mask), "config": config and fingerprint(config),
        "settings": settings.model_dump(mode="json"), "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    name = tomogram_name or short_name(mask)
    overwrite = session.overwrite
    with StagedOutput(target, request_key(request), overwrite=overwrite, marks=()) as staged:
        reader = open_volume(
            mask,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=staged.partial / "scratch",
            spacing_required=config is None,
        )
        made = staged.partial / f"filaments{target.suffix.lower()}"
        job = _FilamentJob(session, reader, settings, made, name)
        report = job.as_published(config) if settings.compat else job.run()
        staged.commit(made.name)
    return report


def check_target(target: Path) -> None:
    """Refuse a list that could not hold angles.

    Examples
    --------
    >>> check_target(Path("filaments.em"))
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: filaments.em: expected an output ending in .csv, .txt, \
.tsv or .star, found .em
    """
    if target.suffix.lower() not in (*_TEXT, _STAR):
        raise ConfigError(
            f"{target}: expected an output ending in {', '.join(_TEXT)} or {_STAR}, "
            f"found {target.suffix or 'none'}"
        )


def check_config(config: Path | None, settings: FilamentSettings) -> None:
    """Refuse the published script's config without its mode, or with numbers besides."""
    if config is not None and settings.compat is None:
        raise ConfigError(
            "filaments: expected --config together with --compat deepict only, found it alone; "
            "give the numbers as options instead"
        )
    if config is not None and (given := settings.changed(_IN_THE_CONFIG)):
        raise ConfigError(
            f"{config}: expected the numbers of the config alone, found {', '.join(given)} "
            "besides; leave them out, or leave out --config"
        )


@dataclass(frozen=True)
class _FilamentJob:
    """An opened mask and what is to become of it."""

    session: Session
    reader: VolumeReader
    settings: FilamentSettings
    made: Path
    tomogram_name: str

    def run(self) -> FilamentReport:
        """Trace filaments chunk by chunk."""
        header, settings = self.reader.header, self.settings
        spacing = header.voxel_spacing_angstrom or 0.0  # open_volume refused a mask without
        lengths = settings.voxels(spacing)
        skeleton = self._skeleton()
        filaments = centrelines(
            skeleton.voxels, header.shape, lengths,
            max_angle_degrees=settings.max_angle_degrees,
        )  # fmt: skip
        table = filament_table(
            filaments, lengths.step, voxel_spacing_angstrom=spacing,
            twist_degrees=settings.twist_degrees,
        )  # fmt: skip
        self._warn(skeleton, len(filaments))
        self._write(table, spacing)
        length = sum(filament.curve.length for filament in filaments) * spacing / 10
        return FilamentReport(len(filaments), len(table), length)

    def _skeleton(self) -> Skeleton:
        """Thin the mask, block by block."""
        header, session = self.reader.header, self.session
        lengths = self.settings.voxels(header.voxel_spacing_angstrom or 0.0)
        op = SkeletonReduction(
            header.shape, lengths, self.settings.threshold, self.settings.label_value, header.dtype
        )
        chunks = [min(c, n) for c, n in zip(session.chunks, header.shape, strict=True)]
        grid = Grid(header.shape, as_vec(chunks), halo=lengths.halo)
        needed = op.bytes_needed(largest_window(grid))
        check_budget("filaments", needed, session.workers.memory_bytes)
        with session.progress.stage(op.name, grid.n_blocks) as advance:
            found: Skeleton = reduce_chunks(
                session.workers, op, [self.reader], grid, on_done=advance
            )
        if len(found.voxels) > _MOST_VOXELS:
            raise ConfigError(
                f"{self.reader.path}: expected a mask of filaments, found {len(found.voxels)} "
                "voxels on its middle lines: give a higher --threshold, or one label "
                "(--label-value)"
            )
        return found

    def _warn(self, skeleton: Skeleton, n_filaments: int) -> None:
        """Say what the user should know of the mask."""
        path, settings = self.reader.path, self.settings
        if skeleton.n_foreground == 0:
            log.warning("%s: the mask is empty, so there are no filaments", path)
        elif n_filaments == 0:
            log.warning(
                "%s: no filament is as long as %g nm; lower --min-length-nm",
                path, settings.min_length_nm,
            )  # fmt: skip
        if skeleton.n_thick:
            log.warning(
                "%s: thicker than twice --max-radius-nm (%g nm) in %d chunks; there the result "
                "may depend on --chunks: give a larger radius, or erode",
                path, settings.max_radius_nm, skeleton.n_thick,
            )  # fmt: skip
        if settings.label_value is None and is_label_map(self.reader, skeleton.maximum):
            log.warning(
                "%s: looks like a label volume (values up to %g); all labels are taken as one "
                "mask; choose one with --label-value",
                path, skeleton.maximum,
            )  # fmt: skip

    def as_published(self, config: Path | None) -> FilamentReport:
        """Do what the published script does, on one worker."""
        header = self.reader.header
        compat = self._compat_settings(config)
        needed = compat_bytes(header.shape, header.dtype)
        check_budget("filaments", needed, self.session.workers.memory_bytes)
        with self.session.progress.stage("filaments", 1) as advance:
            filaments, length = run_whole(
                self.session.workers, "filaments", self.reader.path,
                _read_and_trace, self.reader, compat,
            )  # fmt: skip
            advance(1)
        if self.made.suffix == _STAR:
            spacing = 10 * compat.voxel_size_nm
            self._write(compat_table(filaments, spacing, self.settings.twist_degrees), spacing)
        else:
            self.made.write_bytes(dump_coordinates(filaments, compat.voxel_size_nm))
        if not filaments:
            log.warning("%s: no filament was found", self.reader.path)
        n_points = sum(len(points) for points in filaments)
        return FilamentReport(len(filaments), n_points, length * compat.voxel_size_nm)

    def _compat_settings(self, config: Path | None) -> CompatSettings:
        """Return the script's numbers, from its config or from ours."""
        spacing = self.reader.header.voxel_spacing_angstrom
        if config is not None:
            found = parse_compat_config(_text_of(config), str(config), Path(self.reader.path).name)
            if spacing and abs(spacing / (10 * found.voxel_size_nm) - 1) > _SPACING_TOLERANCE:
                log.warning(
                    "%s: has voxels of %.4g Å, but %s says %.4g nm, which is used",
                    self.reader.path, spacing, config, found.voxel_size_nm,
                )  # fmt: skip
            return found
        voxel_size_nm = (spacing or 0.0) / 10  # open_volume refused a mask without
        return CompatSettings(
            voxel_size_nm,
            self.settings.erode_voxels,
            self.settings.min_length_nm,
            self.settings.step_nm,
            self.settings.max_gap_nm / voxel_size_nm,
            self.settings.max_angle_degrees,
        )

    def _write(self, table: pd.DataFrame, spacing: float) -> None:
        """Write our columns to a text file, RELION's to a STAR file."""
        if self.made.suffix == _STAR:
            table = table.drop(columns="label").rename(columns=STAR_NAMES)
        write_picks(
            table,
            self.made,
            voxel_spacing_angstrom=spacing,
            tomogram_shape=self.reader.header.shape,
            tomogram_name=self.tomogram_name,
            file_format=None if self.made.suffix == _STAR else "csv",
        )


def largest_window(grid: Grid) -> tuple[int, int, int]:
    """Return the shape of the largest window of a grid, cut at the volume's ends.

    Examples
    --------
    >>> largest_window(Grid((100, 100, 40), (50, 50, 40), halo=(9, 9, 9)))
    (59, 59, 40)
    """
    sizes = []
    for size, write, halo in zip(grid.shape, grid.write_shape, grid.halo, strict=True):
        starts = range(0, size, write)
        sizes.append(max(min(size, s + write + halo) - max(0, s - halo) for s in starts))
    return as_vec(sizes)


def is_label_map(reader: VolumeReader, maximum: float) -> bool:
    """Say whether a volume of whole numbers has more values than a mask."""
    whole = np.dtype(reader.header.dtype).kind in "iu"
    return whole and maximum > 1 and maximum != np.iinfo(np.uint8).max


def _text_of(path: Path) -> str:
    """Return a text file's content, or say that there is none."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected the published script's config, found no such text ({error}); "
            "check the path"
        ) from error


def _read_and_trace(reader: VolumeReader, settings: CompatSettings) -> Any:
    """Read the whole mask and trace: the body of the task."""
    with naming(reader.path):
        return compat_filaments(reader.read(Box.whole(reader.header.shape)), settings)
