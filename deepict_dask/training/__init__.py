"""Train U-Nets on tomograms whose particles and compartments are known.

`targets` turns picks into label masks, `patches` samples normalised patches, `loss` compares scores
with targets, `loop` descends (3D and 2D networks alike), and `demo_model` and `demo_model_2d` train
the small models that the package carries.
"""

from .loop import TrainSettings, train_unet2d, train_unet3d
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
    "train_unet2d",
    "train_unet3d",
]
