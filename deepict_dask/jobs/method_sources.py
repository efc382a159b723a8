"""The score maps of a pick job by another method than components, and reductions over them.

A score map has one source for each class that is wanted; a label volume is one source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.geometry import Grid, as_vec
from ..engine import SpillFolder, check_budget, reduce_chunks
from ..io.volumes import open_volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..config import PickSettings
    from ..core.ops import TreeReduction
    from ..core.volume import VolumeHeader, VolumeReader
    from .session import Session

__all__ = ["BACKGROUND", "MethodSources"]

BACKGROUND = "background"
"""The class of a softmax that is no class of particles."""


@dataclass(frozen=True)
class MethodSources:
    """Opened sources and what is wanted of them."""

    session: Session
    scratch: Path
    settings: PickSettings
    sources: tuple[VolumeReader, ...]
    """One for each class, or one."""
    names: tuple[str, ...]
    """The classes of the sources; empty for a volume without classes."""

    @classmethod
    def open(
        cls, session: Session, score: Path, scratch: Path, settings: PickSettings
    ) -> MethodSources:
        """Open the score map of the class that is wanted, or of all.

        Raises
        ------
        ConfigError
            A label is wanted of a score map.
        SpacingError
            The volume does not say its voxel spacing and none was given (but with ``compat``).
        """
        options: dict[str, Any] = {
            "voxel_spacing_angstrom": session.voxel_spacing_angstrom,
            "scratch": scratch, "spacing_required": settings.compat is None,
        }  # fmt: skip
        whole: Any = open_volume(score, **options)
        names = whole.header.class_names
        if not names:
            return cls(session, scratch, settings, (whole,), ())
        if settings.label_value is not None:
            raise ConfigError(
                f"{score}: expected a label volume with --label-value, found scores of "
                f"{', '.join(names)}; choose a class with --class"
            )
        wanted = names if settings.class_name is None else (settings.class_name,)
        sources = tuple(open_volume(score, class_name=name, **options) for name in wanted)
        return cls(session, scratch, settings, sources, tuple(wanted))

    @property
    def header(self) -> VolumeHeader:
        """Shape and spacing of the sources."""
        return self.sources[0].header

    @property
    def is_label_volume(self) -> bool:
        """Whether voxels are labels, not scores."""
        integer = np.dtype(self.header.dtype).kind in "iub"
        return self.settings.label_value is not None or (integer and not self.names)

    def name_of(self, label: int) -> str:
        """Return the name of a class, from its label."""
        if self.names:
            return self.names[label - 1]
        return self.settings.class_name or str(label)

    def grid(self, op: TreeReduction[Any, Any]) -> Grid:
        """Return one block for each chunk, with the halo of what is done.

        Raises
        ------
        BudgetError
            A task would need more memory than a worker has.
        """
        shape = self.header.shape
        chunks = zip(self.session.chunks, shape, strict=True)
        halo = getattr(op, "halo", (0, 0, 0))
        grid = Grid(shape, as_vec([min(c, n) for c, n in chunks]), halo=halo)
        needed = op.bytes_needed(grid.window_shape)
        check_budget(op.name, needed, self.session.workers.memory_bytes)
        return grid

    def reduce(
        self,
        op: TreeReduction[Any, Any],
        nodes: SpillFolder | None = None,
        sources: Sequence[VolumeReader] | None = None,
    ) -> Any:
        """Run a reduction over the sources, or some of them."""
        grid = self.grid(op)
        with self.session.progress.stage(op.name, grid.n_blocks) as advance:
            return reduce_chunks(
                self.session.workers, op, sources or self.sources, grid,
                spill=nodes, on_done=advance,
            )  # fmt: skip

    def nodes(self, name: str) -> SpillFolder:
        """Return an empty folder for files of nodes."""
        folder = self.scratch / name
        folder.mkdir()
        return SpillFolder(str(folder))
