"""The network that a config asks for: a new one, or one to continue from.

Without batch normalisation a signal fades on its way through PyTorch's own first weights, so the
weights of such networks start as He et al. (2015, 10.1109/ICCV.2015.123) draw them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..core.errors import ConfigError
from ..models.architecture import NETWORKS, Network, ends_in_softmax, kind_of
from ..models.checkpoint import load_checkpoint
from ..models.deepetpicker import DeepETPicker, DeepETPickerSettings
from ..models.deepfinder import DeepFinderSettings
from ..models.registry import resolve_model
from ..models.unet2d import UNet2DSettings
from ..models.unet3d import UNet3D, UNet3DSettings
from .mirror import N_MIRRORINGS, tie_mirrored

if TYPE_CHECKING:
    from ..config.training import TrainConfig
    from ..models.architecture import NetworkSettings

__all__ = ["channel_names", "is_flat", "network_to_train"]

SMALLEST_PAD = 12
"""Voxels at a DeepETPicker tile's sides that are context only, where the tile is large enough."""


def network_to_train(config: TrainConfig) -> Network:
    """Return the network in training mode, with first weights by the seed or from a file.

    Raises
    ------
    ConfigError
        The patches do not fit the network, the model to continue from has other classes, or the
        network cannot be tied to its mirror images.
    ModelFileError
        The model to continue from cannot be read.

    Examples
    --------
    >>> from deepict_dask.config.training import TrainConfig
    >>> classes = {"ribosome": {"picks": "ribosome", "radius_nm": 10.8}}
    >>> config = TrainConfig(tomograms="cells.csv", output="model", classes=classes)
    >>> network_to_train(config).training
    True
    """
    if config.network.start_from is not None:
        start = load_checkpoint(resolve_model(config.network.start_from))
        network = start.network
        _check_channels(network.settings, start.class_names, config)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = _new_network(_settings(config))
    _check_patches(network.settings, config)
    if config.network.mirror_symmetric:
        if not isinstance(network, UNet3D | DeepETPicker):
            raise ConfigError(
                "network.mirror_symmetric: expected a 3D U-Net or a DeepETPicker network, found "
                f"the {kind_of(network.settings)} of network.start_from; turn it off"
            )
        tie_mirrored(network, fresh=config.network.start_from is None)
    return network.train()


def is_flat(settings: NetworkSettings) -> bool:
    """Say whether a network takes slices."""
    return isinstance(settings, UNet2DSettings)


def channel_names(settings: NetworkSettings, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the network's channels.

    Examples
    --------
    >>> channel_names(DeepFinderSettings(), ("ribosome",))
    ('background', 'ribosome')
    """
    return ("background", *class_names) if ends_in_softmax(settings) else class_names


def _settings(config: TrainConfig) -> NetworkSettings:
    """Return the architecture that a config describes."""
    asked, n_classes = config.network, len(config.classes)
    if asked.kind == "unet2d":
        return UNet2DSettings(asked.depth, asked.initial_features, n_classes)
    if asked.kind == "deepfinder":
        widths = _widths(DeepFinderSettings().features, asked.width)
        return DeepFinderSettings(n_classes + 1, (widths[0], widths[1], widths[2]))
    if asked.kind == "deepetpicker":
        edge = config.patches.shape[0]
        channels = 1 if n_classes == 1 else n_classes + 1
        pad = min(SMALLEST_PAD, edge // 6)
        multiple = N_MIRRORINGS if asked.mirror_symmetric else 1
        widths = _widths(DeepETPickerSettings().features, asked.width, multiple)
        return DeepETPickerSettings(channels, widths, block_size=edge, pad_size=pad)
    return UNet3DSettings(
        asked.depth, asked.initial_features, n_classes, asked.batch_norm,
        asked.encoder_dropout, asked.decoder_dropout, asked.space_to_depth,
    )  # fmt: skip


def _widths(published: tuple[int, ...], width: float, multiple: int = 1) -> tuple[int, ...]:
    """Return the channels of each level, multiples of a number.

    >>> _widths((24, 48, 72, 108), 1 / 3), _widths((32, 48, 64), 0.01)
    ((8, 16, 24, 36), (1, 1, 1))
    >>> _widths((24, 48, 72, 108), 1 / 3, multiple=8)
    (8, 16, 24, 32)
    """
    return tuple(multiple * max(1, round(width * n / multiple)) for n in published)


def _new_network(settings: NetworkSettings) -> Network:
    network: Network = NETWORKS[kind_of(settings)][2](settings)
    if not any(name.endswith("running_mean") for name in network.state_dict()):
        for weight in network.parameters():
            if weight.ndim > 1:
                torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
            else:
                torch.nn.init.zeros_(weight)
    return network


def _check_channels(
    settings: NetworkSettings, class_names: tuple[str, ...], config: TrainConfig
) -> None:
    """Refuse a model of another number of classes, or of the same in another order."""
    expected = settings.n_classes - ends_in_softmax(settings)
    if expected != len(config.classes):
        raise ConfigError(
            f"network.start_from: {config.network.start_from} has {expected} classes, expected the "
            f"{len(config.classes)} of the config ({', '.join(config.classes)}); train all its "
            "classes, or start without it"
        )
    own = [name for name in class_names if name in config.classes]
    if set(own) == set(config.classes) and own != list(config.classes):
        raise ConfigError(
            f"network.start_from: expected the classes in the order of {config.network.start_from} "
            f"({', '.join(own)}), found {', '.join(config.classes)}; write them in this order"
        )


def _check_patches(settings: NetworkSettings, config: TrainConfig) -> None:
    shape = config.patches.shape
    if is_flat(settings) != (shape[0] == 1):
        wanted = "(1, y, x)" if is_flat(settings) else "(z, y, x), more than one slice thick"
        raise ConfigError(
            f"patches.shape: expected {wanted} for a {kind_of(settings)} network, found {shape}"
        )
    if any(n % settings.align for n in (shape[1:] if is_flat(settings) else shape)):
        raise ConfigError(
            f"patches.shape: expected multiples of {settings.align}, the network's pooling cell, "
            f"found {shape}; change it or network.depth"
        )
    if isinstance(settings, DeepETPickerSettings) and set(shape) != {settings.block_size}:
        raise ConfigError(
            f"patches.shape: expected cubes of {settings.block_size}, the tile of the DeepETPicker "
            f"network, found {shape}"
        )
