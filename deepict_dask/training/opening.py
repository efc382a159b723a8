"""Open what a training config names: tomograms, particle lists and label volumes, all checked.

Whatever would train a network wrongly is refused by name: a column that is not there, an empty cell
(a tomogram that nobody annotated is not one without particles), shapes that differ, particles
outside, voxels that are NaN, voxel spacings more than 5 % apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, SpacingError
from ..core.geometry import Grid
from ..core.statistics import StatisticsReduction
from ..io.dataset import read_dataset
from ..io.volumes import open_volume
from .class_files import SPACING_TOLERANCE, ClassOpener, SpareMemory
from .targets import Targets
from .voxels import PIECE, NormalisedTomogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.training import TrainConfig
    from ..core.geometry import Vec
    from ..core.statistics import VolumeStatistics
    from ..core.volume import VolumeReader
    from ..io.datasets.entry import TomogramEntry

__all__ = ["TrainingTomogram", "choose_entries", "open_tomograms"]

SOFTMAX_KINDS = ("deepfinder", "deepetpicker")


@dataclass(frozen=True, eq=False)
class TrainingTomogram:
    """One tomogram and what the network should answer in it; picklable."""

    name: str
    path: str
    shape: Vec
    voxel_spacing_angstrom: float
    mean: float
    """Of all voxels, as prediction measures it."""
    std: float
    voxels: VolumeReader
    """``read(box)`` returns normalised float32 zyx."""
    targets: Targets
    """``read(box)`` returns uint8 (classes, z, y, x)."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Paths and hashes of the tomogram and of what each class is made from."""


def choose_entries(
    config: TrainConfig, tomograms: Sequence[str] | None, held_out: Sequence[str] | None
) -> tuple[list[TomogramEntry], list[TomogramEntry]]:
    """Return what to train on, and whole tomograms to validate on.

    Parameters
    ----------
    config
        Names the dataset and, unless names are given, what is held out.
    tomograms
        Names to train on; all that are not held out by default.
    held_out
        Names to validate on; those of the config by default.

    Raises
    ------
    ConfigError
        A name is not in the dataset or on both sides, or nothing is left to train on.
    """
    entries = {entry.name: entry for entry in read_dataset(config.tomograms).entries}
    out = list(config.validation.tomograms if held_out is None else held_out)
    names = [name for name in entries if name not in out] if tomograms is None else list(tomograms)
    unknown = [name for name in (*names, *out) if name not in entries]
    both = sorted(set(names) & set(out))
    if unknown:
        where = "validation.tomograms" if {*unknown} <= {*out} else "training"
        raise ConfigError(
            f"{where}: expected names of tomograms of {config.tomograms} "
            f"({', '.join(entries)}), found unknown: {', '.join(unknown)}; correct the name"
        )
    if both:
        raise ConfigError(
            f"{config.tomograms}: expected each tomogram either in training or in validation, "
            f"found on both sides: {', '.join(both)}; take it out of one of them"
        )
    if not names:
        raise ConfigError(
            f"{config.tomograms}: expected a tomogram to train on, found all of them held out; "
            "name fewer under validation"
        )
    return [entries[name] for name in names], [entries[name] for name in out]


def open_tomograms(
    config: TrainConfig, entries: Sequence[TomogramEntry], keep_bytes: int
) -> list[TrainingTomogram]:
    """Open tomograms, measure each once, and lay out its targets.

    Parameters
    ----------
    config
        Classes and voxel spacing.
    entries
        Tomograms of the dataset.
    keep_bytes
        Memory for whole normalised tomograms and label volumes; those that no longer fit are read
        box by box.

    Raises
    ------
    ConfigError, VolumeFormatError, VoxelValueError, PicksFormatError
        As the module says.
    ShapeMismatchError
        A label volume is not of the tomogram's shape.
    SpacingError
        Voxel spacings differ by more than 5 %.
    """
    memory = SpareMemory(keep_bytes)
    names = frozenset(entry.name for entry in entries)
    found = [_open(config, entry, memory, names - {entry.name}) for entry in entries]
    _check_spacings(found)
    return found


def _check_spacings(tomograms: Sequence[TrainingTomogram]) -> None:
    by_spacing = sorted(tomograms, key=lambda one: one.voxel_spacing_angstrom)
    small, large = by_spacing[0], by_spacing[-1]
    edge = small.voxel_spacing_angstrom
    if large.voxel_spacing_angstrom > edge * (1 + SPACING_TOLERANCE):
        raise SpacingError(
            f"{large.path}: expected voxels within 5 % of the {edge:g} Å of {small.name}, found "
            f"{large.voxel_spacing_angstrom:g} Å; bring all tomograms to one voxel size, or leave "
            "some out"
        )


def _open(
    config: TrainConfig, entry: TomogramEntry, memory: SpareMemory, others: frozenset[str]
) -> TrainingTomogram:
    from ..engine.content import fingerprint

    path = entry.path.absolute()
    reader = open_volume(
        path, voxel_spacing_angstrom=entry.told_spacing(config.voxel_spacing_angstrom)
    )
    statistics = _measured(reader)
    statistics.require_finite(str(path))
    statistics.require_contrast(str(path))
    header = reader.header
    spacing = float(header.voxel_spacing_angstrom or 0)
    mean, std = statistics.mean, statistics.std
    voxels = memory.kept(NormalisedTomogram(reader, mean, std))
    opener = ClassOpener(
        entry, header.shape, spacing, memory, dataset=config.tomograms, others=others
    )
    classes = {name: opener.open(name, settings) for name, settings in config.classes.items()}
    exclusive = _is_exclusive(config)
    targets = Targets(tuple(target for target, _ in classes.values()), exclusive)
    inputs = {
        "path": str(path), "sha256": fingerprint(path), "voxel_spacing_angstrom": spacing,
    }  # fmt: skip
    sources = {
        name: [{"path": str(p), "sha256": fingerprint(p)} for p in paths]
        for name, (_, paths) in classes.items()
    }
    return TrainingTomogram(
        entry.name, str(path), header.shape, spacing, mean, std, voxels, targets,
        {**inputs, "classes": sources},
    )  # fmt: skip


def _is_exclusive(config: TrainConfig) -> bool:
    """Say whether a voxel is of one class only: what networks with a softmax can learn."""
    from ..models.architecture import ends_in_softmax
    from ..models.checkpoint import model_info
    from ..models.registry import resolve_model

    if config.network.start_from is None:
        return config.network.kind in SOFTMAX_KINDS
    return ends_in_softmax(model_info(resolve_model(config.network.start_from)).settings)


def _measured(reader: VolumeReader) -> VolumeStatistics:
    """Return mean and standard deviation, read piece by piece."""
    reduction = StatisticsReduction(reader.header.dtype)
    blocks = iter(Grid(reader.header.shape, PIECE))
    block = next(blocks)
    partial = reduction.measure(block, reader.read(block.read))
    for block in blocks:
        partial = reduction.combine(partial, reduction.measure(block, reader.read(block.read)))
    return reduction.finalize(partial)
