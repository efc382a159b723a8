"""What of the software for GPUs is installed, and what each part is for."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

__all__ = ["gpu_parts"]

_ADVICE = "install deepict-dask[cuda12] or deepict-dask[cuda13], whichever fits the driver"


def gpu_parts() -> dict[str, str]:
    """Return for each part its version, or what is missing without it; nothing is run on a GPU.

    Examples
    --------
    >>> list(gpu_parts())
    ['CuPy (arrays on a GPU)', 'cuCIM (labels on a GPU)', 'PyTorch (networks)']
    """
    return {
        "CuPy (arrays on a GPU)": _version("cupy", f"absent; {_ADVICE}"),
        "cuCIM (labels on a GPU)": _version("cucim", "absent: CuPy would label"),
        "PyTorch (networks)": _torch(),
    }


def _version(package: str, absent: str) -> str:
    """Return the installed distribution of a package, whose name tells the CUDA version."""
    if importlib.util.find_spec(package) is None:
        return absent
    found = importlib.metadata.packages_distributions().get(package, [package])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(found)))


def _torch() -> str:
    """Say which CUDA PyTorch was built for, and whether it sees a GPU."""
    built = torch.version.cuda
    if built is None:
        return f"{torch.__version__}, for CPUs only; install PyTorch for CUDA to use a GPU"
    seen = torch.cuda.device_count()
    return f"{torch.__version__}, for CUDA {built}; sees {seen} GPU{'' if seen == 1 else 's'}"
