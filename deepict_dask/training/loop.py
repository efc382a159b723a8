"""Train a U-Net, 3D or 2D: draw a batch, compare, descend, until steps or seconds are spent.

1. Adam, the learning rate falling along a half cosine to a twentieth over the steps (or seconds).
2. The forward pass may run in bfloat16 (a few times faster on CPUs that have it); loss, weights and
   their updates stay float32.
3. After the last step, batch normalisation is measured again over fresh patches in float32: running
   averages lag behind the weights, and batches of a few patches make them noisy.

A 2D network is trained on patches that are one slice thick. It has no batch normalisation, so the
third step is empty for it.

With ``max_seconds`` unset, one seed gives one set of weights on one machine and thread count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import ConfigError
from ..models.unet2d import UNet2D, UNet2DSettings
from ..models.unet3d import UNet3D, UNet3DSettings
from .loss import dice_loss
from .patches import PatchSampler, standardized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..models.architecture import Network

__all__ = ["TrainSettings", "train_unet2d", "train_unet3d"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Raises
    ------
    ConfigError
        If a number is out of its range.

    Examples
    --------
    >>> TrainSettings(steps=10).batch_size
    2
    """

    network: UNet3DSettings | UNet2DSettings = field(default_factory=UNet3DSettings)
    steps: int = 1000
    max_seconds: float | None = None
    """Stop after this time even if steps are left; the learning rate falls with whichever is
    nearer to its end."""
    batch_size: int = 2
    patch_shape: tuple[int, int, int] = (64, 64, 64)
    """Voxels on z, y, x; one slice for a 2D network."""
    learning_rate: float = 1e-3
    final_rate: float = 0.05
    """Learning rate of the last step over that of the first."""
    flips: bool = True
    quarter_turns: bool = False
    centred_fraction: float = 0.0
    bfloat16: bool = True
    both_sides: bool = False
    """Compare what is not of a class as well: for classes that fill most of a volume, where a score
    of 1 everywhere is already a good answer."""
    norm_batches: int = 16
    """Batches over which batch normalisation is measured again at the end; 0 leaves it."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"training: {name} must be positive, found {getattr(self, name)}")
        flat = isinstance(self.network, UNet2DSettings)
        if flat and self.patch_shape[0] != 1:
            raise ConfigError(
                f"training: patch_shape {self.patch_shape} must be one slice thick for a 2D "
                "network; give (1, y, x)"
            )
        if any(n % self.network.align for n in self.patch_shape[1 if flat else 0 :]):
            raise ConfigError(
                f"training: patch_shape {self.patch_shape} must be multiples of "
                f"{self.network.align}, the network's pooling cell; change it or the depth"
            )


def train_unet3d(
    volumes: Sequence[np.ndarray[Any, Any]],
    targets: Sequence[np.ndarray[Any, Any]],
    settings: TrainSettings,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> UNet3D:
    """Train a network on volumes in memory.

    Parameters
    ----------
    volumes
        Tomograms, zyx, any real type; normalised here.
    targets
        For each volume a uint8 array (classes, z, y, x), 1 where the class is.
    settings
        Network, length, batch, rate and seed.
    progress
        Called after every step with its number (from 1) and its loss.

    Returns
    -------
    UNet3D
        In evaluation mode; gives logits.

    Raises
    ------
    ShapeMismatchError
        If volumes, targets and patches do not fit one another.
    ConfigError
        If the number of classes differs from the network's.

    Examples
    --------
    >>> volume = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    >>> small = UNet3DSettings(depth=1, initial_features=2)
    >>> settings = TrainSettings(small, steps=1, patch_shape=(8, 8, 8), norm_batches=0)
    >>> train_unet3d([volume], [(volume > 0.5).astype(np.uint8)[None]], settings).training
    False
    """
    network = _trained(volumes, targets, settings, progress)
    assert isinstance(network, UNet3D), "the settings are those of a 2D network"
    return network


def train_unet2d(
    volumes: Sequence[np.ndarray[Any, Any]],
    targets: Sequence[np.ndarray[Any, Any]],
    settings: TrainSettings,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> UNet2D:
    """Train a 2D network on the slices of volumes in memory.

    Parameters
    ----------
    volumes, targets, progress
        As for `train_unet3d`.
    settings
        With a 2D network and patches of one slice.

    Returns
    -------
    UNet2D
        In evaluation mode; gives logits.

    Raises
    ------
    ShapeMismatchError
        If volumes, targets and patches do not fit one another.
    ConfigError
        If the number of classes differs from the network's.

    Examples
    --------
    >>> volume = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    >>> small = UNet2DSettings(depth=1, initial_features=2)
    >>> settings = TrainSettings(small, steps=1, patch_shape=(1, 8, 8))
    >>> train_unet2d([volume], [(volume > 0.5).astype(np.uint8)[None]], settings).training
    False
    """
    network = _trained(volumes, targets, settings, progress)
    assert isinstance(network, UNet2D), "the settings are those of a 3D network"
    return network


def _trained(
    volumes: Sequence[np.ndarray[Any, Any]],
    targets: Sequence[np.ndarray[Any, Any]],
    settings: TrainSettings,
    progress: Callable[[int, float], None] | None,
) -> Network:
    _check_classes(targets, settings)
    sampler = PatchSampler(
        [standardized(volume) for volume in volumes],
        targets,
        patch_shape=settings.patch_shape,
        flips=settings.flips,
        quarter_turns=settings.quarter_turns,
        centred_fraction=settings.centred_fraction,
    )
    rng = np.random.default_rng(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _new_network(settings)
        _descend(network, sampler, settings, rng, progress)
        _measure_norms(network, sampler, settings, rng)
    return network.eval()


def _new_network(settings: TrainSettings) -> Network:
    if not isinstance(settings.network, UNet2DSettings):
        return UNet3D(settings.network).train()
    network = UNet2D(settings.network).train()
    # without batch normalisation a signal fades on its way through PyTorch's own first weights
    for weight in network.parameters():
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
        else:
            torch.nn.init.zeros_(weight)
    return network


def _drawn(
    sampler: PatchSampler, settings: TrainSettings, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Return patches and targets as the network takes them: a slice has no axis z."""
    drawn = [torch.from_numpy(part) for part in sampler.batch(settings.batch_size, rng)]
    flat = isinstance(settings.network, UNet2DSettings)
    return [part.squeeze(2) for part in drawn] if flat else drawn


def _check_classes(targets: Sequence[np.ndarray[Any, Any]], settings: TrainSettings) -> None:
    found = {len(target) for target in targets}
    if found - {settings.network.n_classes}:
        raise ConfigError(
            f"training: the network has {settings.network.n_classes} classes, the targets "
            f"{sorted(found)}; give one mask per class"
        )


def _descend(
    network: Network,
    sampler: PatchSampler,
    settings: TrainSettings,
    rng: np.random.Generator,
    progress: Callable[[int, float], None] | None,
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    begin = monotonic()
    for step in range(settings.steps):
        done = _done(step, monotonic() - begin, settings)
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = settings.learning_rate * _rate(done, settings.final_rate)
        loss = _step(network, optimizer, _drawn(sampler, settings, rng), settings)
        if progress is not None:
            progress(step + 1, loss)


def _done(step: int, seconds: float, settings: TrainSettings) -> float:
    """Return the part of the steps or of the seconds that is spent, whichever is more."""
    of_time = 0.0 if settings.max_seconds is None else seconds / settings.max_seconds
    return max(step / settings.steps, of_time)


def _rate(done: float, final: float) -> float:
    """Return a half cosine from 1 to ``final``."""
    return final + (1 - final) * 0.5 * (1 + float(np.cos(np.pi * done)))


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    batch: list[torch.Tensor],
    settings: TrainSettings,
) -> float:
    patches, targets = batch
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        logits = network(patches)
    scores = torch.sigmoid(logits.float())
    loss = dice_loss(scores, targets)
    if settings.both_sides:
        loss = (loss + dice_loss(1 - scores, 1 - targets)) / 2
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _measure_norms(
    network: Network, sampler: PatchSampler, settings: TrainSettings, rng: np.random.Generator
) -> None:
    """Replace running averages of batch normalisation by plain averages over fresh batches."""
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm3d)]
    if not norms or not settings.norm_batches:
        return
    momenta = [norm.momentum for norm in norms]
    network.eval()  # without dropout, as at prediction
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    for _ in range(settings.norm_batches):
        network(_drawn(sampler, settings, rng)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
