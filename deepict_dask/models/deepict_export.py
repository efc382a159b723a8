"""Write a 3D U-Net as a checkpoint that DeePiCt's own programs read.

The file is a PyTorch archive of one dict: ``model_descriptor``, ``epoch``, ``model_state_dict``,
``optimizer_state_dict`` (of an Adam that has not stepped) and ``loss``. The descriptor is pickled
as an instance of DeePiCt's class ``constants.statistics.ModelDescriptor``, which DeePiCt finds in
its own sources and `torch_file` replaces by a stand-in.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629.
"""

from __future__ import annotations

import io
import sys
import threading
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import ModelFileError
from ..io.replace import replace_file
from .unet3d import UNet3D, UNet3DSettings

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from .checkpoint import LoadedModel

__all__ = ["save_deepict_checkpoint"]

_PACKAGE, _MODULE, _CLASS = "constants", "constants.statistics", "ModelDescriptor"
_LOCK = threading.Lock()


def save_deepict_checkpoint(path: str | os.PathLike[str], model: LoadedModel) -> None:
    """Write a model as DeePiCt's ``.pth``.

    Parameters
    ----------
    path
        The file; replaced whole or not at all.
    model
        Of `load_checkpoint`: a 3D U-Net.

    Raises
    ------
    ModelFileError
        The model is another network, which DeePiCt's 3D programs do not have.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from deepict_dask.models.checkpoint import load_checkpoint, save_model
    >>> folder = Path(tempfile.mkdtemp())
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    >>> names = {"class_names": ["ribosome"], "voxel_spacing_angstrom": 13.48}
    >>> save_model(folder / "a.safetensors", network, **names)
    >>> save_deepict_checkpoint(folder / "a.pth", load_checkpoint(folder / "a.safetensors"))
    >>> load_checkpoint(folder / "a.pth").class_names
    ('ribosome',)
    """
    network = model.network
    if not isinstance(network, UNet3D):
        raise ModelFileError(
            f"{path}: expected a 3D U-Net, which DeePiCt reads from .pth, found a network of kind "
            f"{model.kind}; keep the .safetensors file"
        )
    if network.settings.space_to_depth != 1:
        raise ModelFileError(
            f"{path}: expected a 3D U-Net as DeePiCt has it, found one with space_to_depth "
            f"{network.settings.space_to_depth}, which its program cannot read; keep the "
            ".safetensors file"
        )
    metrics: dict[str, Any] = model.card.get("metrics", {})
    content = {
        "epoch": max(0, int(metrics.get("epoch", model.card.get("epochs", 1))) - 1),
        "model_state_dict": network.state_dict(),
        "optimizer_state_dict": torch.optim.Adam(network.parameters()).state_dict(),
        "loss": float(metrics.get("val_loss", metrics.get("train_loss", 0.0))),
    }
    data = io.BytesIO()
    with _descriptor_class() as kind:
        descriptor = kind()
        vars(descriptor).update(_fields(model, network.settings, str(path)))
        torch.save({"model_descriptor": descriptor, **content}, data)
    replace_file(path, data.getvalue())


def _fields(model: LoadedModel, network: UNet3DSettings, path: str) -> dict[str, Any]:
    """Return the fields of DeePiCt's descriptor; what is not known is as DeePiCt leaves it."""
    card = model.card
    asked: dict[str, Any] = card.get("settings", {})
    patches, optimizer = asked.get("patches", {}), asked.get("optimizer", {})
    roles = {name: one.get("roles", ()) for name, one in card.get("training_data", {}).items()}
    return {
        "batch_norm": network.batch_norm,
        "box_size": patches.get("shape", [64])[0],
        "training_date": "",
        "decoder_dropout": network.decoder_dropout,
        "encoder_dropout": network.encoder_dropout,
        "depth": network.depth,
        "initial_features": network.initial_features,
        "log_path": "",
        "model_name": path.rpartition("/")[2].removesuffix(".pth"),
        "model_path": path,
        "epochs": optimizer.get("epochs", 0),
        "old_model": asked.get("network", {}).get("start_from"),
        "output_classes": network.n_classes,
        "overlap": patches.get("overlap", 12),
        "partition_name": "",
        "processing_tomo": "",
        "retrain": False,
        "semantic_classes": list(model.class_names),
        "train_split": 1 - asked.get("validation", {}).get("fraction", 0.0),
        "training_set": [name for name, role in roles.items() if "training" in role],
        "testing_set": [name for name, role in roles.items() if "validation" in role],
        "total_folds": None,
        "fold": None,
        **_augmentation(asked.get("augment", {})),
        "loss": {"generalized_dice": "GeneralizedDice"}.get(optimizer.get("loss", ""), "Dice"),
    }


def _augmentation(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what the descriptor says of augmentation."""
    return {
        "da_rounds": int(any(asked.values())),
        "da_rot_angle": asked.get("rotation_degrees", 0.0),
        "da_elastic_alpha": asked.get("elastic", 0.0),
        "da_sigma_gauss": asked.get("gaussian_noise", 0.0),
        "da_salt_pepper_p": asked.get("salt_and_pepper", 0.0),
        "da_salt_pepper_ampl": asked.get("salt_and_pepper_amplitude", 0.0),
    }


@contextmanager
def _descriptor_class() -> Iterator[type[Any]]:
    """Give a class DeePiCt's name for as long as it is pickled."""
    kind = type(_CLASS, (), {"__module__": _MODULE})
    package, module = ModuleType(_PACKAGE), ModuleType(_MODULE)
    package.__dict__["statistics"] = module
    module.__dict__[_CLASS] = kind
    with _LOCK:
        before = {name: sys.modules.get(name) for name in (_PACKAGE, _MODULE)}
        sys.modules.update({_PACKAGE: package, _MODULE: module})
        try:
            yield kind
        finally:
            for name, old in before.items():
                if old is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = old
