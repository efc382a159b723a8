"""The published script's config: a text file with one header line and one line per tomogram.

The columns, separated by a comma and a blank, are tomo_name, working_dir, tomo_file, voxel_size
(nm), erode_size (voxels), min_fil_length, resampling_steps (nm), maxdist (voxels), maxang
(degrees), cnn_statistics, ground_truth_file, output_dir. What names files is not used here: the
mask and the output are arguments of the command.
"""

from __future__ import annotations

from ..core.errors import ConfigError
from .deepict_compat import CompatSettings

__all__ = ["parse_compat_config"]

_NAME, _FILE = 0, 2
_NUMBERS = {
    "voxel_size": 3, "erode_size": 4, "min_fil_length": 5, "resampling_steps": 6,
    "maxdist": 7, "maxang": 8,
}  # fmt: skip


def parse_compat_config(text: str, where: str, mask_name: str) -> CompatSettings:
    r"""Return the numbers for a mask.

    Parameters
    ----------
    text
        The config.
    where
        Its path, for messages.
    mask_name
        File name of the mask: chooses the line where there are several.

    Raises
    ------
    ConfigError
        A line is too short, holds no number where one must be, or none is for this mask.

    Examples
    --------
    >>> text = "header\nfil, in/, mask.mrc, 1.348, 3, 30, 8, 30, 20"
    >>> parse_compat_config(text, "config.txt", "mask.mrc").step_nm
    8.0
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()[1:]]
    rows = [row for row in rows if any(row)]
    short = [row for row in rows if len(row) <= max(_NUMBERS.values())]
    if short or not rows:
        found = f"{len(short[0])} in {', '.join(short[0])!r}" if short else "no line of settings"
        raise ConfigError(
            f"{where}: expected a header and lines of at least {max(_NUMBERS.values()) + 1} values "
            f"separated by commas, found {found}; see the sample config of the published script"
        )
    row = _row_of(rows, where, mask_name)
    values = {name: _number(row[column], name, where) for name, column in _NUMBERS.items()}
    return CompatSettings(
        voxel_size_nm=values["voxel_size"],
        erode_voxels=int(values["erode_size"]),
        min_length=values["min_fil_length"],
        step_nm=values["resampling_steps"],
        max_distance_voxels=values["maxdist"],
        max_angle_degrees=values["maxang"],
    )


def _row_of(rows: list[list[str]], where: str, mask_name: str) -> list[str]:
    """Return the only row, or the one of the mask."""
    stem = mask_name.split(".")[0]
    own = [row for row in rows if row[_FILE].split("/")[-1].split(".")[0] == stem]
    found = own if len(own) == 1 else rows
    if len(found) != 1:
        raise ConfigError(
            f"{where}: expected one line for {mask_name}, found {len(own)} among "
            f"{', '.join(row[_NAME] for row in rows)}; leave only the line of this mask"
        )
    return found[0]


def _number(cell: str, name: str, where: str) -> float:
    """Return a positive number of the config."""
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not value >= 0 or (value == 0 and name in ("voxel_size", "erode_size", "resampling_steps")):
        raise ConfigError(f"{where}: {name}: expected a positive number, found {cell!r}")
    return value
