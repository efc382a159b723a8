"""Filaments: from a segmentation of microtubules or actin to oriented picks along centrelines.

`SkeletonReduction` thins a mask chunk by chunk; `centrelines` turns its voxels into ordered, linked
and smoothed curves; `filament_table` puts oriented points on them.
"""

from .op import Skeleton, SkeletonReduction
from .settings import FilamentSettings
from .tables import STAR_NAMES, filament_table
from .trace import Filament, centrelines

__all__ = [
    "STAR_NAMES",
    "Filament",
    "FilamentSettings",
    "Skeleton",
    "SkeletonReduction",
    "centrelines",
    "filament_table",
]
