"""Settings: strict, frozen, units in the names, every default written once.

A misspelt key is refused by its name. `load_run_config` reads the YAML of ``deepict-dask run``;
the command line builds the same stage settings from its options.
"""

from .run import (
    ClusterConfig,
    RunConfig,
    dump_config,
    load_run_config,
    read_config_file,
    settings_from,
)
from .stages import (
    ContactSettings,
    EqualizeSettings,
    PickSettings,
    RegionSettings,
    SegmentSettings,
    SliceTiling,
)

__all__ = [
    "ClusterConfig",
    "ContactSettings",
    "EqualizeSettings",
    "PickSettings",
    "RegionSettings",
    "RunConfig",
    "SegmentSettings",
    "SliceTiling",
    "dump_config",
    "load_run_config",
    "read_config_file",
    "settings_from",
]
