"""Train the 3D U-Net on tomograms whose particles are known.

`targets` turns picks into label masks, `patches` samples normalised patches, `loss` compares scores
with targets, `loop` descends, and `demo_model` trains the small model that the package carries.
"""

from .loop import TrainSettings, train_unet3d
from .loss import dice_loss
from .patches import PatchSampler, standardized
from .targets import radius_in_voxels, sphere_target

__all__ = [
    "PatchSampler",
    "TrainSettings",
    "dice_loss",
    "radius_in_voxels",
    "sphere_target",
    "standardized",
    "train_unet3d",
]
