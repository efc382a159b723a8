"""Region masks: which clusters have to do with a lamella, a compartment, a membrane.

Intersection and contact ride in the labelling reduction; colocalization needs the distance of a
centroid to the region, which is local: see ``distance.py``.
"""

from .distance import chessboard_distances, distance_bytes

__all__ = ["chessboard_distances", "distance_bytes"]
