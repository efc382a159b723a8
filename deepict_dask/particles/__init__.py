"""From clusters to particle lists."""

from .tables import cluster_table, picks_table

__all__ = ["cluster_table", "picks_table"]
