"""Run benchmarks, write one JSON, one page and plots: ``python -m benchmarks [NAME ...]``.

All run unless some are named, but for a million windows and the training of networks, which take
hours. The files are ``small.*`` or ``full.*``, by the size. Figures of benchmarks that are not
asked for are kept from the last run of the same size.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from deepict_dask.core.errors import DeepictError
from deepict_dask.engine import ClusterSettings, connect

from .report import section, write_page

if TYPE_CHECKING:
    from deepict_dask.engine import Workers

NAMES = (
    "label", "segment", "equalize", "run", "dataset", "scaling", "memory", "rivals_label",
    "rivals_inference", "plans", "million", "mean_shift", "training",
    "training_deepfinder", "training_deepetpicker",
)  # fmt: skip
_LONG = ("million", "training", "training_deepfinder", "training_deepetpicker")
"""Run in full size only where they are named: they take an hour and more."""
_PACKAGES = (
    "deepict-dask", "dask", "numpy", "torch", "zarr", "scipy", "connected-components-3d",
    "scikit-image", "scikit-learn", "dask-image", "monai", "openvino", "onnx", "onnxruntime",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse the options, run, print and write; return 1 if a benchmark failed."""
    options = _parser().parse_args(arguments)
    name = options.size
    by_default = [key for key in NAMES if name == "small" or key not in _LONG]
    names = [key for key in NAMES if key in (options.names or by_default)]
    path = options.out / f"{name}.json"
    results = json.loads(path.read_text()) if path.exists() else {"benchmarks": {}}
    results["machine"] = machine()
    for key in names:
        # Workers are new each time: what one benchmark left in them does not count for the next.
        with connect(ClusterSettings(workers=2, memory=options.memory)) as workers:
            found = measure(workers, key, small=name == "small")
        print(section(found), flush=True)
        results["benchmarks"][key] = found
        results["benchmarks"] = {
            k: results["benchmarks"][k] for k in NAMES if k in results["benchmarks"]
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
        page = write_page(results, options.out, name)
    print(f"wrote {path} and {page}")
    return int(any("failed" in results["benchmarks"][key] for key in names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure deepict_dask beside others.",
        epilog="benchmarks:\n" + "\n".join(f"  {name:21} {question(name)}" for name in NAMES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        type=_known,
        metavar="NAME",
        help="by default all but million and those of training",
    )
    parser.add_argument(
        "--size", choices=("small", "full"), default="full",
        help="small: tiny volumes, as the tests take",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR",
        help="folder of the JSON, the page and the plots",
    )  # fmt: skip
    parser.add_argument("--memory", default="2GiB", help="of each of the two workers")
    return parser


def _known(name: str) -> str:
    """Return the name of a benchmark, or refuse an unknown one."""
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"unknown: {name}; one of {', '.join(NAMES)}")
    return name


def question(name: str) -> str:
    """Return what a benchmark answers: the first line of its module, which is not imported.

    Examples
    --------
    >>> question("segment")
    "Which part of the network's own speed segmentation from Zarr to Zarr reaches."
    """
    source = Path(__file__).with_name(f"bench_{name}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def measure(workers: Workers, name: str, *, small: bool) -> dict[str, Any]:
    """Return the figures of one benchmark, with when it ran and how busy the machine was."""
    before, start = os.getloadavg()[0], time.perf_counter()
    try:
        found: dict[str, Any] = import_module(f"benchmarks.bench_{name}").run(workers, small=small)
    except DeepictError as error:
        found = {"name": name, "failed": str(error)}
    return found | {
        "seconds of this benchmark": round(time.perf_counter() - start, 1),
        "load average, start and end": f"{before:.1f}, {os.getloadavg()[0]:.1f}",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": len(os.sched_getaffinity(0)),
        "memory, GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {name: _version(name) for name in _PACKAGES}


def _commit() -> str:
    """Return the commit of the working tree, and whether files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _processor() -> str:
    """Return the processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
