"""Region masks: which clusters have to do with a lamella, a compartment, a membrane.

Intersection and contact ride in the labelling reduction. Distances of centroids to a region take
two steps: one pass over the mask finds where the region lies at all (``occupancy.py``), then each
chunk with centroids looks at the parts of the region that can be nearest (``distance.py``).
"""

from .distance import distance_bytes, nearest_distances, parts_in_reach
from .occupancy import PART_DTYPE, MaskSurvey, SurveyReduction

__all__ = [
    "PART_DTYPE",
    "MaskSurvey",
    "SurveyReduction",
    "distance_bytes",
    "nearest_distances",
    "parts_in_reach",
]
