"""Runs DeePiCt's own projects: its 3D and 2D config.yaml with their tables, unchanged.

`is_deepict_config` tells them from ours, `run_deepict` leaves the files that DeePiCt would leave,
and `upgrade_config` writes the same as a config of ours.
"""

from .project import is_deepict_config, plan_deepict, read_project, run_deepict
from .upgrade import Upgraded, upgrade_config

__all__ = [
    "Upgraded",
    "is_deepict_config",
    "plan_deepict",
    "read_project",
    "run_deepict",
    "upgrade_config",
]
