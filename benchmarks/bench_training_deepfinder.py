"""What DeepFinder finds in cells it has not seen, trained as `training` does.

The same cells, seeds and minutes as of `bench_training`; it picks as its own program does
(`picker_recipes`).
"""

from __future__ import annotations

from typing import Any

from .picker_recipes import compare_seeds


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - trains in this process
    """Train it with every seed; return figures of the cells that were kept."""
    return compare_seeds("DeepFinder", small=small)
