"""Find particles, membranes and organelles in cryo-electron tomograms, chunk by chunk, on Dask.

The functions here work on lazy `xarray.DataArray`; the command ``deepict-dask`` runs the same
kernels over files of any size.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import equalize, label, open_tomogram, pick, segment

__version__ = "0.1.0"
__all__ = ["__version__", "equalize", "label", "open_tomogram", "pick", "segment"]


def __getattr__(name: str) -> Any:
    """Import the notebook functions when they are first used: the command line starts faster."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
