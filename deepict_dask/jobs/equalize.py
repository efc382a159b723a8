"""Measure a tomogram's spectrum; give a tomogram another one's spectrum."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.spectrum import Spectrum
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

__all__ = ["equalize_volume", "measure_spectrum", "plan_equalize", "spectrum_of_model"]


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


def plan_equalize(
    settings: EqualizeSettings, reader: VolumeReader, device: str = "cpu"
) -> EqualizeOp:
    """Return the op that gives a tomogram the target's spectrum.

    Raises
    ------
    ConfigError
        The target is no spectrum table, or one of the other mode.
    """
    settings, target = _target(settings)
    compat = settings.compat is not None
    spacing = reader.header.voxel_spacing_angstrom
    if not compat and spacing and settings.cutoff and settings.cutoff > sqrt(3) / (2 * spacing):
        raise ConfigError(
            f"equalize: expected a cutoff in 1/Å below {sqrt(3) / (2 * spacing):.3g} (the highest "
            f"frequency at {spacing:g} Å per voxel), found {settings.cutoff:g}; "
            "bins are understood with --compat deepict only"
        )
    return EqualizeOp(
        target,
        voxel_spacing_angstrom=spacing,
        mode="deepict" if compat else "physical",
        cutoff=settings.cutoff or 0,
        smoothing=settings.smoothing,
        source_dtype=reader.header.dtype,
        device=device,
    )


def spectrum_of_model(model: Path) -> tuple[Spectrum, dict[str, Any]]:
    """Return the spectrum of the tomograms a model was trained on, and the filter's settings.

    Raises
    ------
    ConfigError
        The model's card tells of none.
    ModelFileError
        The file is no model.
    """
    from ..models.checkpoint import model_info

    said = model_info(model).card.get("equalization")
    if not said:
        raise ConfigError(
            f"{model}: expected a model that was trained on equalized tomograms, found none in its "
            "card; give a spectrum table (.tsv)"
        )
    frequency = said["target"]["frequency_per_angstrom"]
    spectrum = Spectrum(tuple(said["target"]["intensity"]), frequency and tuple(frequency))
    return spectrum, {name: said[name] for name in ("cutoff", "smoothing", "compat")}


def _target(settings: EqualizeSettings) -> tuple[EqualizeSettings, Spectrum]:
    """Return the target: of a table, or of a model's card, which has the other settings too."""
    if settings.target.suffix != ".safetensors":
        read = read_physical_spectrum if settings.compat is None else read_spectrum
        return settings, read(settings.target)
    spectrum, told = spectrum_of_model(settings.target)
    # the command line, and a config with all keys, give defaults too: those are not meant
    given = {name: getattr(settings, name) for name in settings.model_dump(exclude_defaults=True)}
    return settings.model_copy(update=told | given), spectrum


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
        "settings": settings.model_dump(mode="json", exclude={"target"}), "chunks": session.chunks,
        "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    with volume_output(session, target, request_key(request)) as output:
        reader = open_volume(
            source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=output.scratch,
            spacing_required=_target(settings)[0].compat is None,
        )
        statistics = _checked_statistics(session, reader)
        transform_volume(
            session.workers,
            plan_equalize(settings, reader, session.device),
            reader,
            output.sink(replace(reader.header, dtype="float32"), session.chunks),
            statistics=statistics,
            scratch=output.staged.partial / "pieces",
            progress=session.progress,
        )
    return target
