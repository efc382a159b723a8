"""Run all benchmarks and write one JSON and one table: ``python -m benchmarks [--small]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from deepict_dask.engine import ClusterSettings, connect

from . import bench_label, bench_segment


def main() -> None:
    """Parse the options, run, print and write."""
    parser = argparse.ArgumentParser(description="Measure deepict_dask against others.")
    parser.add_argument("--small", action="store_true", help="tiny volumes, as the tests do")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/results.json"))
    options = parser.parse_args()
    results = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor()},
        "benchmarks": run(small=options.small),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results["benchmarks"]))
    print(f"wrote {options.out}")


def run(*, small: bool) -> list[dict[str, object]]:
    """Return the figures of every benchmark."""
    with connect(ClusterSettings(workers=2, memory="2GiB")) as workers:
        return [module.run(workers, small=small) for module in (bench_label, bench_segment)]


def table(results: list[dict[str, object]]) -> str:
    """Return the figures as lines."""
    lines = []
    for result in results:
        lines.append(str(result["name"]))
        lines += [f"  {key:<44} {value}" for key, value in result.items() if key != "name"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
