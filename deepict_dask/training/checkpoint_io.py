"""Checkpoints that are there whole or not at all, and of which nothing is run when they are read.

Lightning's own are written under a temporary name in another folder, often on another disk, from
which they are copied: a kill in between leaves half of one.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..core.errors import ModelFileError
from ..io.replace import replace_file

if TYPE_CHECKING:
    import os

__all__ = ["WholeCheckpoints", "read_checkpoint"]


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Return what a checkpoint of a training holds.

    Raises
    ------
    ModelFileError
        It is damaged.
    """
    try:
        found: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # what damage raises is not documented
        raise ModelFileError(
            f"{path}: expected the checkpoint of a training, found damage ({error}); "
            "start again with --restart"
        ) from error
    return found


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints at once, reads them without running anything."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        del storage_options
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any = "cpu",
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU: one of a GPU is read where there is none, too."""
        del weights_only  # nothing else is ever read
        return read_checkpoint(path, map_location)
