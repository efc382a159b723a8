"""Folders called ``VoxelSpacing10.000``, as copick and the CryoET Data Portal name them.

The number in the name is the voxel spacing by which both programs know what is inside. It overrides
the headers, which older stores left at 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .walk import subfolders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PREFIX", "spacing_folders"]

PREFIX = "VoxelSpacing"


def spacing_folders(folder: Path) -> Iterator[tuple[Path, str, float]]:
    """Yield the folders of voxel spacings, the number in their name as text, and in Å.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> run = Path(tempfile.mkdtemp())
    >>> (run / "VoxelSpacing13.480").mkdir()
    >>> [(text, number) for _, text, number in spacing_folders(run)]
    [('13.480', 13.48)]
    """
    for child in subfolders(folder) if folder.is_dir() else ():
        text = child.name.removeprefix(PREFIX)
        try:
            number = float(text) if text != child.name else math.nan
        except ValueError:
            continue
        if math.isfinite(number) and number > 0:
            yield child, text, number
