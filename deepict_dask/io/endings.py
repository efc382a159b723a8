"""Which format a name promises."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

__all__ = ["ENDINGS", "PACKED", "WARP_VOXEL_SIZE", "kind_of", "plain_name"]

ENDINGS = {
    "mrc": (".mrc", ".rec", ".map", ".st", ".mrcs", ".ali", ".preali"),
    "zarr": (".zarr",),
    "em": (".em",),
    "tiff": (".tif", ".tiff"),
}
PACKED = (".gz", ".bz2")
WARP_VOXEL_SIZE = r"_\d+\.\d+Apx"
"""What Warp appends to the name of a tilt series for its tomogram (``TS_1_10.00Apx.mrc``)."""


def plain_name(path: str | os.PathLike[str]) -> str:
    """Return a file's name without the ending of a compressor.

    Examples
    --------
    >>> plain_name("/data/tomo.MRC.gz")
    'tomo.MRC'
    """
    name = PurePath(path).name
    ending = next((end for end in PACKED if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return ``mrc``, ``zarr``, ``em`` or ``tiff`` by a name's ending, or an empty text.

    Packed names (``.mrc.gz``) have no kind of their own; see `plain_name`.

    Examples
    --------
    >>> kind_of("a/tomo.REC"), kind_of("tomo.mrc.gz"), kind_of(plain_name("tomo.mrc.gz"))
    ('mrc', '', 'mrc')
    """
    name = PurePath(path).name.lower()
    return next((kind for kind, ends in ENDINGS.items() if name.endswith(ends)), "")
