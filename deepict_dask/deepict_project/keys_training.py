"""The keys of DeePiCt's config files that say how to train, with the values its own files ship.

All other keys of the same files are known, and are for prediction.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .keys import (
    Key,
    Schema,
    anything,
    count,
    flag,
    names,
    number,
    one_of,
    optional,
    pair,
    positive,
    text,
)
from .keys2d import SCHEMA_2D
from .keys3d import SCHEMA_3D

__all__ = ["TRAINING_2D", "TRAINING_3D"]

_NET, _AUG = "training.unet_hyperparameters", "training.data_augmentation"
_SLICING, _GENERAL = "preprocessing.slicing", "training.general"
_EVALUATION = "training.evaluation"


def _part(value: Any) -> float:
    """Return a number from 0 to below 1."""
    found = number(value)
    if not 0 <= found < 1:
        raise ValueError("a number from 0 to below 1")
    return float(found)


def _split(value: Any) -> float:
    """Return a number above 0, at most 1."""
    found = number(value)
    if not 0 < found <= 1:
        raise ValueError("a number above 0, at most 1")
    return float(found)


def _mapping(value: Any) -> Any:
    """Return which labels become which; '.' stands for all others."""
    if value is not None and not isinstance(value, dict):
        raise ValueError("labels and what they become, such as {1: 1}")
    return value


def _and_others(schema: Schema, keys: dict[str, Key]) -> Schema:
    """Add the other keys of the same file, which have no effect on training."""
    others = {name: replace(key, use="unused", parse=anything) for name, key in schema.keys.items()}
    return Schema({**others, **keys}, schema.renamed)


TRAINING_3D = _and_others(
    SCHEMA_3D,
    {
        "dataset_table": Key(text),
        "output_dir": Key(text),
        "model_path": Key(text),
        "tomos_sets.training_list": Key(names),
        "cross_validation.active": Key(flag, default=False),
        "training.semantic_classes": Key(names),
        "training.processing_tomo": Key(text),
        "training.box_size": Key(positive, 64),
        "training.min_label_fraction": Key(_part, 0.001),
        "training.overlap": Key(count, 12),
        "training.batch_size": Key(positive, 5),
        "training.force_retrain": Key(flag, default=False),
        f"{_NET}.depth": Key(positive, 2),
        f"{_NET}.initial_features": Key(positive, 4),
        f"{_NET}.epochs": Key(positive, 50),
        f"{_NET}.train_split": Key(_split, 0.8),
        f"{_NET}.batch_norm": Key(flag, default=True),
        f"{_NET}.encoder_dropout": Key(_part, 0),
        f"{_NET}.decoder_dropout": Key(_part, 0.2),
        f"{_NET}.loss": Key(one_of("Dice", "GeneralizedDice"), "Dice"),
        f"{_AUG}.rounds": Key(count, 0),
        f"{_AUG}.rot_angle": Key(number, 180),
        f"{_AUG}.elastic_alpha": Key(number, 0),
        f"{_AUG}.sigma_gauss": Key(number, 1),
        f"{_AUG}.salt_pepper_p": Key(_part, 0.01),
        f"{_AUG}.salt_pepper_ampl": Key(number, 0.1),
    },
)
TRAINING_2D = _and_others(
    SCHEMA_2D,
    {
        "data.training_data": Key(text),
        "preprocessing.filtering.active": SCHEMA_2D.keys["preprocessing.filtering.active"],
        "preprocessing.filtering.target_spectrum": SCHEMA_2D.keys[
            "preprocessing.filtering.target_spectrum"
        ],
        "preprocessing.filtering.lowpass_cutoff": Key(number, 350),
        "preprocessing.filtering.smoothen_cutoff": Key(number, 20),
        "preprocessing.remapping.active": Key(flag, default=False),
        "preprocessing.remapping.mapping": Key(_mapping, None),
        f"{_SLICING}.patch_size": Key(pair, [288, 288]),
        f"{_GENERAL}.lr": Key(number, 1e-4),
        f"{_GENERAL}.drop_empty": Key(number, 0),
        f"{_GENERAL}.batch_size": Key(positive, 8),
        f"{_GENERAL}.n_filters": Key(positive, 4),
        f"{_GENERAL}.flip": Key(flag, default=True),
        f"{_GENERAL}.rotate": Key(flag, default=True),
        f"{_EVALUATION}.active": Key(flag, default=False),
        f"{_EVALUATION}.cv_folds": Key(optional(positive), None),
        f"{_EVALUATION}.epochs": Key(positive, 50),
        f"{_EVALUATION}.stopping_patience": Key(count, 0),
        f"{_EVALUATION}.random_seed": Key(count, 0),
        "training.production.active": Key(flag, default=False),
        "training.production.epochs": Key(positive, 50),
        "training.production.model_output": Key(text),
    },
)
