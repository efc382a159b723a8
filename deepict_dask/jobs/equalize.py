"""Measure a tomogram's spectrum; give a tomogram another one's spectrum."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, OutputExistsError
from ..core.geometry import Box
from ..engine import check_budget, fingerprint, request_key, transform_volume
from ..engine.arrays import naming
from ..engine.spectral import run_whole
from ..equalization import EqualizeOp, radial_spectrum
from ..equalization.spectrum import spectrum_bytes
from ..io.spectrum import read_physical_spectrum, read_spectrum, write_spectrum
from ..io.volumes import open_volume
from .session import measure_statistics
from .volume_output import volume_output

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import EqualizeSettings
    from ..core.spectrum import Spectrum
    from ..core.volume import VolumeReader
    from .session import Session

__all__ = ["equalize_volume", "measure_spectrum", "plan_equalize"]


def _spectrum_of(reader: VolumeReader, spacing: float | None, compat: bool) -> Spectrum:  # noqa: FBT001 - the body of a task
    """Read a whole volume and measure its spectrum: the body of the task."""
    volume = reader.read(Box.whole(reader.header.shape))
    with naming(reader.path):
        return radial_spectrum(volume, spacing, compat=compat)


def measure_spectrum(session: Session, source: Path, target: Path, *, compat: bool = False) -> Path:
    """Write the radial amplitude spectrum of a tomogram as a table (.tsv).

    Raises
    ------
    OutputExistsError
        The table exists.
    BudgetError
        The volume does not fit one worker.
    """
    import tempfile

    source = source.absolute()  # workers may run in another folder

    if target.exists() and not session.overwrite:
        raise OutputExistsError(
            f"{target}: expected no such output, found one; give another name, or --overwrite"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        reader = open_volume(
            source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=scratch,
            spacing_required=not compat,
        )
        statistics = measure_statistics(session, reader, name="statistics")
        statistics.require_finite(reader.path)
        header = reader.header
        needed = spectrum_bytes(header.shape, dtype=header.dtype, compat=compat)
        check_budget("spectrum", needed, session.workers.memory_bytes)
        spectrum = run_whole(
            session.workers, "spectrum", reader.path,
            _spectrum_of, reader, header.voxel_spacing_angstrom, compat,
        )  # fmt: skip
    write_spectrum(target, spectrum, overwrite=session.overwrite)
    return target


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

    Raises
    ------
    BudgetError
        The volume and its transform do not fit one worker.
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
        statistics = measure_statistics(session, reader, name="statistics")
        statistics.require_finite(reader.path)
        statistics.require_contrast(reader.path)
        op = plan_equalize(settings, reader)
        sink = output.sink(replace(reader.header, dtype="float32"), session.chunks)
        with session.progress.stage(op.name, 1) as advance:
            transform_volume(session.workers, op, reader, sink)
            advance(1)
    return target
