"""The keys of DeePiCt's 2D config.yaml, with the values of its defaults.yaml.

DeePiCt takes a key that a section lacks from its defaults.yaml (a section that is missing crashes
it; here its keys take the same defaults). Its own config.yaml differs from that file: prediction
crop 48 and z_cutoff 200, threshold 0.5.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629.
"""

from __future__ import annotations

from typing import Any

from .keys import Key, Schema, anything, count, flag, number, optional, pair, text

__all__ = ["SCHEMA_2D"]


def _threshold(value: Any) -> float | None:
    """Return a threshold; None, False and 0 say that there is none."""
    return number(value) or None if value not in (None, False) else None


def _slices(value: Any) -> int:
    """Return how many central slices are predicted; 0 for all."""
    return 0 if value is None else count(value)


def _idle(use: Any, section: str, *found: str) -> dict[str, Key]:
    return {f"{section}.{name}": Key(anything, None, use) for name in found}


SCHEMA_2D = Schema(
    keys={
        "data.prediction_data": Key(text),
        "data.output_dir": Key(text),
        "preprocessing.filtering.active": Key(flag, default=False),
        "preprocessing.filtering.target_spectrum": Key(optional(text), None),
        "preprocessing.filtering.lowpass_cutoff": Key(number, 350),
        "preprocessing.filtering.smoothen_cutoff": Key(number, 20),
        "preprocessing.remapping.active": Key(flag, default=False),
        "training.evaluation.active": Key(flag, default=False),
        "training.production.active": Key(flag, default=False),
        "prediction.active": Key(optional(flag), None),
        "prediction.model": Key(optional(text), None),
        "prediction.normalize": Key(flag, default=True),
        "prediction.crop": Key(count, 0),
        "prediction.compensate_crop": Key(flag, default=True),
        "prediction.patch_size": Key(pair, [288, 288]),
        "prediction.patch_dim": Key(pair, [5, 5]),
        "prediction.z_cutoff": Key(_slices, 0),
        "postprocessing.active": Key(optional(flag), None),
        "postprocessing.sigma": Key(number, 5),
        "postprocessing.threshold": Key(_threshold, 0.75),
        **_idle("training", "data", "training_data", "train_workdir"),
        **_idle("training", "preprocessing.remapping", "mapping"),
        **_idle(
            "training", "preprocessing.slicing",
            "patch_size", "patch_dim", "z_cutoff", "z_stride", "crop", "flip_y",
        ),
        **_idle(
            "training", "training.general",
            "normalize", "lr", "drop_empty", "batch_size", "n_filters", "flip", "rotate",
        ),
        **_idle(
            "training", "training.evaluation",
            "cv_folds", "epochs", "stopping_patience", "tensorboard", "run_name", "tf_logdir",
            "random_seed", "save_models", "model_dir",
        ),
        **_idle("training", "training.production", "epochs", "model_output"),
        "cluster.logdir": Key(anything, None, "unused"),
        "debug": Key(anything, None, "unused"),
    },
    renamed={},
)  # fmt: skip
