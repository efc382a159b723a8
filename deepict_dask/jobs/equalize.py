"""Measure a tomogram's spectrum; give a tomogram another one's spectrum."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..engine import StagedOutput, fingerprint, request_key, transform_volume
from ..engine.spectral import measure_volume
from ..equalization import EqualizeOp, SpectrumOp
from ..io.spectrum import read_physical_spectrum, read_spectrum, write_spectrum
from ..io.volumes import open_volume
from .session import measure_statistics
from .volume_output import volume_output

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import EqualizeSettings
    from ..core.statistics import VolumeStatistics
    from ..core.volume import VolumeReader
    from .session import Session

__all__ = ["equalize_volume", "measure_spectrum", "plan_equalize"]


def measure_spectrum(session: Session, source: Path, target: Path, *, compat: bool = False) -> Path:
    """Write the radial amplitude spectrum of a tomogram as a table (.tsv).

    A volume that does not fit a worker is transformed in pieces.

    Raises
    ------
    OutputExistsError
        The table exists.
    BudgetError
        Not even the smallest pieces fit a worker.
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    """
    source = source.absolute()  # workers may run in another folder
    request = {
        "job": "spectrum", "input": fingerprint(source), "compat": compat,
        "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    key = request_key(request)
    with StagedOutput(target, key, overwrite=session.overwrite, marks=()) as output:
        reader = open_volume(
            source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=output.partial / "scratch",
            spacing_required=not compat,
        )
        header = reader.header
        spectrum = measure_volume(
            session.workers,
            SpectrumOp(header.voxel_spacing_angstrom, compat, header.dtype),
            reader,
            statistics=_checked_statistics(session, reader),
            scratch=output.partial / "pieces",
            progress=session.progress,
        )
        write_spectrum(output.partial / "spectrum.tsv", spectrum)
        output.commit("spectrum.tsv")
    return target


def _checked_statistics(session: Session, reader: VolumeReader) -> VolumeStatistics:
    """Measure a volume; refuse one without a spectrum."""
    statistics = measure_statistics(session, reader, name="statistics")
    statistics.require_finite(reader.path)
    statistics.require_contrast(reader.path)
    return statistics


def plan_equalize(settings: EqualizeSettings, reader: VolumeReader) -> EqualizeOp:
    """Return the op that gives a tomogram the target's spectrum.

    Raises
    ------
    ConfigError
        The target is no spectrum table, or one of the other mode.
    """
    compat = settings.compat is not None
    spacing = reader.header.voxel_spacing_angstrom
    if not compat and spacing and settings.cutoff and settings.cutoff > sqrt(3) / (2 * spacing):
        raise ConfigError(
            f"equalize: expected a cutoff in 1/Å below {sqrt(3) / (2 * spacing):.3g} (the highest "
            f"frequency at {spacing:g} Å per voxel), found {settings.cutoff:g}; "
            "bins are understood with --compat deepict only"
        )
    target = read_spectrum(settings.target) if compat else read_physical_spectrum(settings.target)
    return EqualizeOp(
        target,
        voxel_spacing_angstrom=spacing,
        mode="deepict" if compat else "physical",
        cutoff=settings.cutoff or 0,
        smoothing=settings.smoothing,
        source_dtype=reader.header.dtype,
    )


def equalize_volume(
    session: Session, source: Path, target: Path, settings: EqualizeSettings
) -> Path:
    """Write a tomogram with the target's amplitudes, float32.

    A volume that does not fit a worker is transformed in pieces.

    Raises
    ------
    BudgetError
        Not even the smallest pieces fit a worker.
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    """
    source = source.absolute()  # workers may run in another folder
    request: dict[str, Any] = {
        "job": "equalize", "input": fingerprint(source), "target": fingerprint(settings.target),
        "settings": settings.model_dump(mode="json"), "chunks": session.chunks,
        "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    with volume_output(session, target, request_key(request)) as output:
        reader = open_volume(
            source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=output.scratch,
            spacing_required=settings.compat is None,
        )
        statistics = _checked_statistics(session, reader)
        transform_volume(
            session.workers,
            plan_equalize(settings, reader),
            reader,
            output.sink(replace(reader.header, dtype="float32"), session.chunks),
            statistics=statistics,
            scratch=output.staged.partial / "pieces",
            progress=session.progress,
        )
    return target
