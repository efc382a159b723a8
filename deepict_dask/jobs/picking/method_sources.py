"""The score maps of a pick job by another method than components, and reductions over them.

A score map has one source for each class that is wanted; a label volume is one source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ConfigError
from ...core.geometry import Grid, as_vec
from ...engine import SpillFolder, check_budget, reduce_chunks
from ...io.volumes import open_volume
from ..segmenting.chosen_model import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ...config import PickSettings
    from ...core.geometry import Vec
    from ...core.ops import TreeReduction
    from ...core.volume import VolumeHeader, VolumeReader
    from ..session import Session

__all__ = [
    "BACKGROUND",
    "MethodSources",
    "holds_labels",
    "method_grid",
    "of_label_volume",
    "refuse_background",
]


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
        settings = of_label_volume(settings) if not names else settings
        refuse_background(settings, str(score))
        if not names:
            if settings.argmax:
                raise ConfigError(
                    f"{score}: expected scores of several classes with argmax, found one volume; "
                    "leave argmax out"
                )
            return cls(session, scratch, settings, (whole,), ())
        if settings.label_value is not None or settings.class_names:
            raise ConfigError(
                f"{score}: expected a label volume with label_value or class_names, found scores "
                f"of {', '.join(names)}; choose a class with --class"
            )
        if settings.class_name not in (None, *names):
            raise ConfigError(
                f"{score}: class: expected one of {', '.join(names)}, found {settings.class_name!r}"
            )
        together = settings.class_name is None or settings.argmax
        wanted = names if together else (str(settings.class_name),)
        sources = tuple(open_volume(score, class_name=name, **options) for name in wanted)
        return cls(session, scratch, settings, sources, tuple(wanted))

    @property
    def header(self) -> VolumeHeader:
        """Shape and spacing of the sources."""
        return self.sources[0].header

    @property
    def is_label_volume(self) -> bool:
        """Whether voxels are labels, not scores."""
        s = self.settings
        return s.label_value is not None or (not self.names and holds_labels(self.header, s))

    def name_of(self, label: int) -> str:
        """Return the name of a class, from its label."""
        if self.names:
            return self.names[label - 1]
        known = self.settings.class_names
        return self.settings.class_name or (known[label] if label < len(known) else str(label))

    def label_of(self, name: str) -> int | None:
        """Return the label of a class, from its name; None where there is no such class."""
        if name in self.names:
            return self.names.index(name) + 1
        if name in self.settings.class_names:
            return self.settings.class_names.index(name)
        return int(name) if self.is_label_volume and name.isdigit() else None

    def of_classes(self, values: Mapping[str, Any], what: str) -> dict[int, Any]:
        """Return values by label, from values by class.

        Raises
        ------
        ConfigError
            There is no such class.
        """
        found = {self.label_of(name): value for name, value in values.items()}
        if None in found:
            (unknown, *_) = (name for name in values if self.label_of(name) is None)
            known = self.names or self.settings.class_names
            raise ConfigError(
                f"{what}: expected a class of {', '.join(known) or 'the label volume'}, "
                f"found {unknown!r}; correct it"
            )
        return {label: value for label, value in found.items() if label is not None}

    def thresholds(self) -> tuple[float, ...]:
        """Return the threshold of each source.

        Raises
        ------
        ConfigError
            One is of an unknown class, or the volume has labels and no scores.
        """
        s = self.settings
        if s.thresholds and not self.names:
            raise ConfigError(
                f"thresholds: expected scores of several classes, found "
                f"{'labels' if self.is_label_volume else 'one class'}; leave them out"
            )
        of_classes = self.of_classes(s.thresholds, "thresholds")
        return tuple(of_classes.get(i, s.threshold) for i in range(1, len(self.sources) + 1))

    def grid(self, op: TreeReduction[Any, Any]) -> Grid:
        """Return one block for each chunk, with the halo of what is done.

        Raises
        ------
        BudgetError
            A task would need more memory than a worker has.
        """
        grid = method_grid(op, self.header.shape, self.session.chunks)
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


def holds_labels(header: VolumeHeader, settings: PickSettings) -> bool:
    """Say whether voxels are labels: whole numbers, and no threshold among them was given.

    Floats are labels where labels have names (``class_names``); that they are whole is seen later.

    Examples
    --------
    >>> from deepict_dask.config import PickSettings
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> labels, scores = (VolumeHeader((1, 1, 1), dtype, 10.0) for dtype in ("uint8", "float32"))
    >>> holds_labels(labels, PickSettings()), holds_labels(labels, PickSettings(threshold=128))
    (True, False)
    >>> holds_labels(scores, PickSettings())
    False
    >>> holds_labels(scores, PickSettings(class_names=("background", "ribosome")))
    True
    """
    whole = np.dtype(header.dtype).kind in "iub" or bool(settings.class_names)
    return whole and settings.threshold < 1


def method_grid(op: TreeReduction[Any, Any], shape: Vec, chunks: Vec) -> Grid:
    """Return one block for each chunk, with the halo of what is done."""
    fitted = as_vec([min(c, n) for c, n in zip(chunks, shape, strict=True)])
    return Grid(shape, fitted, halo=getattr(op, "halo", (0, 0, 0)))


def of_label_volume(settings: PickSettings) -> PickSettings:
    """Return settings with the number of the class that is wanted of a label volume with names.

    Raises
    ------
    ConfigError
        No number has this name.

    Examples
    --------
    >>> from deepict_dask.config import PickSettings
    >>> names = ("background", "ribosome", "fas")
    >>> of_label_volume(PickSettings(class_name="fas", class_names=names)).label_value
    2
    """
    name, names = settings.class_name, settings.class_names
    if name is None or not names or settings.label_value is not None:
        return settings
    if name not in names:
        raise ConfigError(f"class: expected one of {', '.join(names)}, found {name!r}; correct it")
    refuse_background(settings, "pick")
    return settings.model_copy(update={"label_value": names.index(name)})


def refuse_background(settings: PickSettings, where: str) -> None:
    """Refuse to pick the background, which is no class of particles.

    Raises
    ------
    ConfigError
        It is asked for.
    """
    if (settings.class_name or "").lower() == BACKGROUND:
        raise ConfigError(
            f"{where}: class: expected a class of particles, found {settings.class_name}; "
            "choose another"
        )
