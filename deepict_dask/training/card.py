"""What a trained model's file says of itself, and how a finished training is known again.

The card holds all that prediction needs to know of how the tomograms were prepared: normalisation,
voxel spacing, and where they were equalized the target spectrum itself.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..core.errors import ModelFileError
from ..engine import fingerprint, request_key
from ..io.spectrum import read_spectrum
from ..models.checkpoint import model_info
from ..models.registry import resolve_model

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import EqualizeSettings
    from ..config.training import TrainConfig
    from .data import TrainingData
    from .validation import Validated

__all__ = ["equalization_of", "finished_card", "model_card", "training_key", "without_paths"]

NOT_OF_THE_WEIGHTS = frozenset({
    "tomograms", "output", "cluster", "cross_validation", "search", "rounds",
})  # fmt: skip
"""Settings that do not change what is learned; the tomograms count by their content."""
PLACES: dict[str, Any] = {
    "network": {"start_from"}, "equalize": {"target"}, "classes": {"__all__": {"mask_file"}},
}  # fmt: skip
"""Files whose content counts, wherever they are."""
PACKAGES = ("deepict-dask", "lightning", "monai", "numpy", "torch")


def training_key(config: TrainConfig, data: TrainingData) -> str:
    """Return the key of a training: settings and content, not places or names of files."""
    start = config.network.start_from
    return request_key({
        "job": "train", "inputs": without_paths(data.inputs),
        "config": config.model_dump(
            mode="json", exclude=dict.fromkeys(NOT_OF_THE_WEIGHTS, True) | PLACES
        ),
        "equalize": config.equalize and fingerprint(config.equalize.target),
        "start_from": start and fingerprint(resolve_model(start)),
    })  # fmt: skip


def finished_card(model: Path) -> dict[str, Any] | None:
    """Return the card of a finished training; None where there is no model.

    Examples
    --------
    >>> from pathlib import Path
    >>> finished_card(Path("nowhere/model.safetensors")) is None
    True
    """
    try:
        return model_info(model).card if model.exists() else None
    except ModelFileError:
        return {}


def model_card(
    config: TrainConfig, data: TrainingData, *, key: str, best: dict[str, float],
    found: Validated | None, steps: int, minutes: float, why_ended: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the card of a model: anything JSON can hold."""
    settings = config.model_dump(mode="json", exclude={"output", "cluster"})
    thresholds = found.threshold if found else {}
    card: dict[str, Any] = {
        "about": f"Trained on {_tomograms(data)} for {', '.join(data.class_names)}.",
        "made_by": "deepict-dask train",
        "request": key,
        "settings": settings,
        "normalisation": "(voxel - mean) / standard deviation, both of the whole tomogram",
        "equalization": config.equalize and equalization_of(config.equalize),
        "training_data": data.inputs,
        "steps": steps,
        "minutes": round(minutes, 2),
        "ended": why_ended or "all epochs are done",
        "metrics": {name: round(value, 6) for name, value in best.items()},
        "recommended": {n: {"threshold": t} for n, t in thresholds.items() if t is not None},
        "versions": {name: version(name) for name in PACKAGES},
    }
    if found:
        card["validation"] = {name: round(value, 6) for name, value in found.row().items()}
    return card


def equalization_of(settings: EqualizeSettings) -> dict[str, Any]:
    """Return how the tomograms were equalized, with the target spectrum itself.

    Raises
    ------
    ConfigError
        The target is no spectrum table.
    """
    target = read_spectrum(settings.target)
    return {
        "cutoff": settings.cutoff,
        "smoothing": settings.smoothing,
        "compat": settings.compat,
        "target": {
            "intensity": list(target.intensity),
            "frequency_per_angstrom": target.frequency_per_angstrom
            and list(target.frequency_per_angstrom),
        },
    }


def _tomograms(data: TrainingData) -> str:
    """Say on how many tomograms."""
    found = len(data.inputs)
    return "1 tomogram" if found == 1 else f"{found} tomograms"


def without_paths(inputs: Any) -> Any:
    """Return what inputs hold, not where they are."""
    if isinstance(inputs, dict):
        return {k: without_paths(v) for k, v in inputs.items() if k not in ("path", "paths")}
    if isinstance(inputs, list | tuple):
        return [without_paths(one) for one in inputs]
    return inputs
