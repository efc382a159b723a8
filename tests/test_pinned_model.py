"""A model file that work began with is the one that it ends with."""

from __future__ import annotations

import os

import pytest
import torch

from deepict_dask.core.errors import ModelFileError
from deepict_dask.models import registry
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.registry import (
    PinnedModel,
    inference_network,
    loaded_model,
    loaded_unet3d,
)
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings


@pytest.fixture
def network():
    torch.manual_seed(1)
    return UNet3D(UNet3DSettings(1, 2, 2)).eval()


def test_a_pinned_model_is_the_same_one_and_another_at_its_path_is_refused(tmp_path, network):
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    first = loaded_model(path)
    pinned = PinnedModel(str(path), first.sha256)
    assert loaded_model(pinned) is first
    assert inference_network(pinned) is inference_network(path)
    save_model(path, network, class_names=["c", "d"], voxel_spacing_angstrom=None)
    os.utime(path, ns=(1, 1))
    for load in (loaded_model, loaded_unet3d, inference_network):
        with pytest.raises(ModelFileError, match=r"m\.safetensors: expected the model .* replaced"):
            load(pinned)
    assert loaded_model(path).class_names == ("c", "d")
    path.unlink()
    with pytest.raises(ModelFileError, match=rf"^{path}: cannot read the model file"):
        loaded_model(pinned)


def test_a_pinned_model_that_made_room_for_others_is_not_read_again(tmp_path, network, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    pinned = PinnedModel(str(path), loaded_model(path).sha256)
    arranged = inference_network(pinned)
    registry._load.cache_clear()
    monkeypatch.setattr(registry, "load_checkpoint", None)
    assert inference_network(pinned) is arranged
