"""Is a tomogram like those a model was trained on? Said before any network runs.

Two causes of empty results that nothing else shows: another voxel spacing, and amplitudes that
were not equalized to the spectrum in the model's card. The second is looked for in the voxels
(`deepict_dask.equalization.likeness`), where the card has a spectrum by frequency. One cause is
told at a time: with a wrong spacing every frequency is wrong as well.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...core.spectrum import Spectrum
from ...engine.spectral import run_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from ...core.volume import VolumeHeader, VolumeReader
    from ..session import Session
    from .chosen_model import ChosenModel

__all__ = [
    "check_equalization",
    "misfits",
    "sampled_amplitude",
    "spacing_misfit",
    "target_of_card",
    "warn_of_misfits",
]

Array = Any
_SPACING_TOLERANCE = 0.05
log = logging.getLogger("deepict_dask")


def warn_of_misfits(
    session: Session, source: Path, reader: VolumeReader, models: Iterable[ChosenModel]
) -> None:
    """Warn of each model once whose training tomograms were of another kind.

    Parameters
    ----------
    session
        One of its workers looks at the voxels, where a card has a spectrum; it has the warnings.
    source, reader
        The tomogram, as it is called and opened.
    models
        Those that are to run.

    Raises
    ------
    WorkFailedError
        The tomogram cannot be read.
    """

    def look(reader: VolumeReader) -> Array:
        return run_whole(session.workers, "spectrum", str(source), sampled_amplitude, reader)

    named = {model.path: model.name for model in models}
    for warning in misfits(source, reader, named, look):
        session.warn(warning)


def misfits(
    source: Path, reader: VolumeReader, models: Mapping[str, str],
    look: Callable[[VolumeReader], Array] | None = None,
) -> list[str]:  # fmt: skip
    """Return what to say of a tomogram and some models, a line each.

    Parameters
    ----------
    source, reader
        The tomogram, as it is called and opened.
    models
        How each model is called, by its file.
    look
        Returns `sampled_amplitude` of the tomogram; called at most once. None where amplitudes do
        not count, since the tomogram is equalized first.
    """
    from ...models.checkpoint import model_info

    said, amplitude = [], None
    for path, name in models.items():
        info = model_info(path)
        text = spacing_misfit(reader.header, info.voxel_spacing_angstrom, name)
        target = target_of_card(info.card)
        if text is None and target is not None and look is not None:
            amplitude = look(reader) if amplitude is None else amplitude
            text = _equalization_misfit(reader, amplitude, target, info.card["equalization"], name)
        if text is not None:
            said.append(f"{source}: {text}")
    return said


def check_equalization(model: str) -> None:
    """Warn that a model was trained on equalized tomograms, where nothing equalizes them.

    For spectra by place, as DeePiCt writes them: whether a tomogram has one cannot be seen. Where
    it can, each tomogram is looked at (`warn_of_misfits`).
    """
    from ...models.checkpoint import model_info
    from ...models.registry import resolve_model

    card = model_info(resolve_model(model)).card
    if card.get("equalization") and target_of_card(card) is None:
        log.warning(
            "%s was trained on equalized tomograms, but nothing here equalizes them: expect poor "
            "results; unless they are equalized already, add `equalize: {target: %s}`, whose card "
            "holds the spectrum",
            model, model,
        )  # fmt: skip


def spacing_misfit(header: VolumeHeader, trained_at: float | None, model: str) -> str | None:
    """Say that the voxel spacing is far from what the model was trained at, and what to do.

    Parameters
    ----------
    header
        Of the tomogram.
    trained_at
        In Å; None where the model does not say.
    model
        As it is called.

    Returns
    -------
    text
        None where they agree within 5 %, or one of them is not known.
    """
    found = header.voxel_spacing_angstrom
    if trained_at is None or found is None:
        return None
    ratio = found / trained_at
    if abs(ratio - 1) <= _SPACING_TOLERANCE:
        return None
    return (
        f"{model} was trained at {trained_at:.4g} Å per voxel, but the tomogram has "
        f"{found:.4g} Å{_in_words(ratio)}: expect poor or empty results; rescale the "
        f"tomogram{_binning(ratio)}, or give the true spacing with --voxel-spacing-angstrom "
        "(in a run: voxel_spacing_angstrom)"
    )


def _in_words(ratio: float) -> str:
    """Return what a ratio of spacings is about, where there is a word for it.

    Examples
    --------
    >>> _in_words(0.52), _in_words(1.97), _in_words(1.3)
    (', about half of it', ', about double', '')
    """
    known = {0.25: ", about a quarter of it", 0.5: ", about half of it", 2: ", about double",
             4: ", about four times as much"}  # fmt: skip
    near = (said for each, said in known.items() if abs(ratio / each - 1) <= _SPACING_TOLERANCE)
    return next(near, "")


def _binning(ratio: float) -> str:
    """Return how to bin a tomogram whose spacing is so many times the model's, where that does.

    Examples
    --------
    >>> _binning(0.25)
    ' (bin it by 4: `deepict-dask convert IN OUT.zarr --pyramid mean` leaves it in OUT.zarr/2)'
    >>> _binning(1 / 3), _binning(2.0)
    (' (bin it by 3)', '')
    """
    factor = round(1 / ratio)
    if factor < 2 or abs(ratio * factor - 1) > _SPACING_TOLERANCE:
        return ""
    level = factor.bit_length() - 1
    how = f": `deepict-dask convert IN OUT.zarr --pyramid mean` leaves it in OUT.zarr/{level}"
    return f" (bin it by {factor}{how if factor == 1 << level else ''})"


def target_of_card(card: dict[str, Any]) -> Spectrum | None:
    """Return the spectrum of a card that a tomogram's own can be compared with.

    None where the model was trained on tomograms as they are, and where the spectrum is by place
    only, as DeePiCt writes it: what its filter leaves at a frequency depends on the tomogram.

    Examples
    --------
    >>> target = {"intensity": [2.0, 1.0], "frequency_per_angstrom": [0.01, 0.02]}
    >>> target_of_card({"equalization": {"target": target}}).intensity
    (2.0, 1.0)
    >>> target_of_card({"equalization": None}) is None
    True
    """
    said = card.get("equalization") or {}
    frequency = said.get("target", {}).get("frequency_per_angstrom")
    if not frequency or said.get("compat"):
        return None
    return Spectrum(tuple(said["target"]["intensity"]), tuple(frequency))


def sampled_amplitude(reader: VolumeReader) -> Array:
    """Return a tomogram's amplitudes in a few cubes; empty where an axis is too short for one."""
    import numpy as np

    from ...equalization.likeness import local_amplitude, sample_boxes
    from ...equalization.spectrum import RadialKnots

    boxes = sample_boxes(reader.header.shape)
    spacing = reader.header.voxel_spacing_angstrom
    if not boxes or not spacing:
        return np.zeros(0)
    knots = RadialKnots(boxes[0].shape, spacing)
    return local_amplitude((reader.read(box) for box in boxes), knots)


def _equalization_misfit(
    reader: VolumeReader, amplitude: Array, target: Spectrum, filtered: dict[str, Any], model: str
) -> str | None:
    """Say that a tomogram's amplitudes are not those of the target."""
    from ...equalization.likeness import (
        NOT_EQUALIZED,
        departure,
        expected_amplitude,
        sample_boxes,
    )
    from ...equalization.spectrum import RadialKnots

    spacing = reader.header.voxel_spacing_angstrom
    if not len(amplitude) or spacing is None:
        return None
    knots = RadialKnots(sample_boxes(reader.header.shape)[0].shape, spacing)
    expected = expected_amplitude(
        target, knots.frequency_per_angstrom,
        cutoff=filtered.get("cutoff") or 0, smoothing=filtered.get("smoothing") or 0,
    )  # fmt: skip
    factor = departure(amplitude, expected, knots)
    if factor is None or factor <= NOT_EQUALIZED:
        return None
    return (
        f"{model} was trained on equalized tomograms, and this one is not equalized to their "
        f"spectrum: its amplitudes differ by a factor of {factor:.2g} (told above "
        f"{NOT_EQUALIZED:g}): expect poor or empty results; equalize it first with `deepict-dask "
        f"equalize IN OUT.zarr --target {model}`, or in a run with `equalize: {{target: {model}}}`"
    )
