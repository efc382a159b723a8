"""Connected components of a volume that no worker ever holds.

Label each chunk, reduce the chunk faces in a tree, number what is left: see ``merge.py``.
"""

from .merge import LabelNode, combine_nodes
from .op import LabelReduction, RelabelOp, SelectSettings

__all__ = ["LabelNode", "LabelReduction", "RelabelOp", "SelectSettings", "combine_nodes"]
