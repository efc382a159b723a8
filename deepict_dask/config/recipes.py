"""Settings of training that papers and programs publish, by name.

`PRESETS` are networks: those of DeePiCt's paper (de Teresa-Trueba et al. 2023,
10.1038/s41592-022-01746-2, Supplementary Table 1). `RECIPES` are whole ways to train, as the
programs of three papers do by default: network, patches, augmentation, optimizer.

deepict
    Patches of a grid where something is labelled, plain Dice, no augmentation (its program makes
    augmented patches but does not train on them).
deepfinder
    Moebel et al. 2021 (10.1038/s41592-021-01275-4): patches round annotated particles, all classes
    alike, shifted by up to 13 voxels; turns by 180 degrees about the tilt axis; Tversky loss; Adam
    at 1e-4.
    Its program normalises each patch; here a tomogram is normalised as a whole, as for prediction.
deepetpicker
    Liu et al. 2024 (10.1038/s41467-024-46041-0): patches of 72 voxels round each annotated particle
    in turn, shifted by up to 14 voxels; flips, small turns and changes of size; Dice without
    squares, background included; AdamW along one cycle; the epoch of the lowest validation loss,
    as its program has it (the paper: ``choose: f1_alpha``).
"""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS", "RECIPES"]

PRESETS: dict[str, dict[str, Any]] = {
    "ribosome": {"kind": "unet3d", "depth": 2, "initial_features": 4, "batch_norm": True},
    "fas": {"kind": "unet3d", "depth": 2, "initial_features": 16, "batch_norm": True},
    "membrane": {"kind": "unet3d", "depth": 2, "initial_features": 4, "batch_norm": True},
    "npc": {"kind": "unet3d", "depth": 3, "initial_features": 16, "batch_norm": True},
    "microtubule": {"kind": "unet3d", "depth": 2, "initial_features": 4, "batch_norm": True},
    "actin": {"kind": "unet3d", "depth": 3, "initial_features": 8, "batch_norm": False},
    "cytosol": {"kind": "unet2d", "depth": 4, "initial_features": 16},
    "organelle": {"kind": "unet2d", "depth": 4, "initial_features": 16},
}
"""The paper counts the base as a level of its 2D network: its D5 has 4 poolings."""

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "deepict": {
        "network": {"kind": "unet3d", "depth": 2, "initial_features": 4},
        "patches": {"shape": [64, 64, 64], "sampling": "grid", "min_label_fraction": 0.002},
        "augment": {"flips": False},
        "optimizer": {
            "loss": "dice", "learning_rate": 1e-3, "schedule": "plateau", "batch_size": 5,
        },
    },
    "deepfinder": {
        "network": {"kind": "deepfinder"},
        "patches": {"shape": [56, 56, 56], "sampling": "balanced", "centred_fraction": 1.0,
                    "largest_shift": 13},
        "augment": {"flips": False, "half_turns": True},
        "optimizer": {
            "loss": "tversky", "learning_rate": 1e-4, "schedule": "constant", "batch_size": 25,
            "epochs": 100, "steps_per_epoch": 100,
        },
    },
    "deepetpicker": {
        "network": {"kind": "deepetpicker"},
        "patches": {"shape": [72, 72, 72], "sampling": "particles", "largest_shift": 14},
        "augment": {"flips": True, "rotation_degrees": 15.0, "scale": 0.05},
        "optimizer": {
            "loss": "soft_dice", "learning_rate": 1e-3, "schedule": "early_cycle",
            "optimizer": "adamw", "weight_decay": 0.01, "second_beta": 0.99, "batch_size": 8,
            "epochs": 60, "choose": "loss",
        },
    },
}  # fmt: skip
