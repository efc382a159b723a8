"""Runs the three kinds of work on Dask; knows nothing of U-Nets or clusters.

`map_chunks` runs a ChunkOp, `reduce_chunks` a TreeReduction, `transform_volume` a SpectralOp;
`lazy` does the same for dask arrays in a notebook.
"""

from .arrays import map_chunks
from .budget import beside_torch, check_budget, task_budget_bytes
from .cluster import ClusterSettings, Workers, connect
from .content import damage_in, fingerprint
from .ledger import Ledger
from .progress import Progress
from .reduce import SpillFolder, reduce_chunks
from .spectral import transform_volume
from .staging import StagedOutput, request_key

__all__ = [
    "ClusterSettings",
    "Ledger",
    "Progress",
    "SpillFolder",
    "StagedOutput",
    "Workers",
    "beside_torch",
    "check_budget",
    "connect",
    "damage_in",
    "fingerprint",
    "map_chunks",
    "reduce_chunks",
    "request_key",
    "task_budget_bytes",
    "transform_volume",
]
