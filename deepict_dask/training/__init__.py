"""Train networks on tomograms whose particles and compartments are known.

1. `opening` finds tomograms, particle lists and label volumes; `targets` makes label masks of them.
2. `sampling` says which boxes a batch has, `data` reads them, `augment` changes them.
3. `fit` trains: `module` is a step, `epochs` what happens between steps, `validation` and `assess`
   measure, `card` says in the model's file how it was made.
4. `demo_model` and `demo_model_2d` train the small models that the package carries.
"""

from .losses import dice_loss
from .targets import radius_in_voxels, sphere_target

__all__ = ["dice_loss", "radius_in_voxels", "sphere_target"]
