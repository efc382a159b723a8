"""The keys of DeePiCt's 3D config.yaml, with the values its own file ships.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629; the old names stand in the README of
its 3D part.
"""

from __future__ import annotations

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
    positive,
    text,
)

__all__ = ["CONNECTIVITY", "SCHEMA_3D"]

CONNECTIVITY = {1: 6, 2: 18, 3: 26}
"""DeePiCt's numbers for 6, 18 and 26 neighbours."""


def connectivity(value: Any) -> int:
    """Return 6, 18 or 26 for 1, 2 or 3."""
    if isinstance(value, bool) or value not in list(CONNECTIVITY):  # a list has no hash
        raise ValueError("1, 2 or 3 (6, 18 or 26 neighbours)")
    return CONNECTIVITY[value]


def border_zyx(value: Any) -> tuple[int, int, int]:
    """Return a border in zyx order from one number or DeePiCt's [x, y, z].

    Examples
    --------
    >>> border_zyx([10, 20, 5]), border_zyx(3)
    ((5, 20, 10), (3, 3, 3))
    """
    xyz = value if isinstance(value, list) else [value] * 3
    if len(xyz) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in xyz):
        raise ValueError("one whole number of voxels or three [x, y, z]")
    return xyz[2], xyz[1], xyz[0]


def _unused(*found: str) -> dict[str, Key]:
    return {name: Key(anything, None, "unused") for name in found}


def _training(section: str, *found: str) -> dict[str, Key]:
    return {f"{section}.{name}": Key(anything, None, "training") for name in found}


_POST = "postprocessing_clustering"

SCHEMA_3D = Schema(
    keys={
        "dataset_table": Key(text),
        "output_dir": Key(text),
        "work_dir": Key(text),
        "model_path": Key(text),
        "tomos_sets.prediction_list": Key(names),
        "training.active": Key(flag, default=False),
        "training.semantic_classes": Key(names),
        "training.processing_tomo": Key(text),
        "training.box_size": Key(positive, 64),
        "training.overlap": Key(positive, 12),
        "training.unet_hyperparameters.depth": Key(optional(positive), None),
        "training.unet_hyperparameters.initial_features": Key(optional(positive), None),
        "training.unet_hyperparameters.batch_norm": Key(optional(flag), None),
        "cross_validation.active": Key(flag, default=False),
        "prediction.active": Key(flag, default=False),
        "prediction.semantic_class": Key(text),
        f"{_POST}.active": Key(flag, default=False),
        f"{_POST}.threshold": Key(number, 0.5),
        f"{_POST}.min_cluster_size": Key(count, 100),
        f"{_POST}.max_cluster_size": Key(optional(positive), None),
        f"{_POST}.clustering_connectivity": Key(connectivity, 3),
        f"{_POST}.calculate_motl": Key(flag, default=False),
        f"{_POST}.ignore_border_thickness": Key(border_zyx, [10, 20, 10]),
        f"{_POST}.region_mask": Key(optional(text), "lamella_file"),
        f"{_POST}.contact_mode": Key(
            one_of("intersection", "contact", "colocalization"), "intersection"
        ),
        f"{_POST}.contact_distance": Key(count, 10),
        "evaluation.particle_picking.active": Key(flag, default=False),
        "evaluation.particle_picking.pr_tolerance_radius": Key(number, 10),
        "evaluation.segmentation_evaluation.active": Key(flag, default=False),
        "tomos_sets.training_list": Key(anything, None, "training"),
        **_training("training", "min_label_fraction", "batch_size", "force_retrain"),
        **_training(
            "training.unet_hyperparameters",
            "epochs", "train_split", "encoder_dropout", "decoder_dropout", "loss",
        ),
        **_training(
            "training.data_augmentation",
            "rounds", "rot_angle", "elastic_alpha", "sigma_gauss", "salt_pepper_p",
            "salt_pepper_ampl",
        ),
        **_unused(
            "cluster.logdir", "cross_validation.folds", "cross_validation.statistics_file",
            "evaluation.particle_picking.statistics_file",
            "evaluation.segmentation_evaluation.statistics_file", "debug",
        ),
    },
    renamed={
        "model_name": "model_path",
        "box_shape": "training.box_size",
        "n_epochs": "training.unet_hyperparameters.epochs",
        "split": "training.unet_hyperparameters.train_split",
        "BatchNorm": "training.unet_hyperparameters.batch_norm",
        "filtering_mask": f"{_POST}.region_mask",
    },
)  # fmt: skip
