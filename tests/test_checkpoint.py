"""Model files: DeePiCt's, ours, and all that are neither."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from deepict_dask.core.errors import DeviceError, ModelFileError
from deepict_dask.models.checkpoint import load_checkpoint, model_info, save_model
from deepict_dask.models.deepict_export import save_deepict_checkpoint
from deepict_dask.models.registry import (
    bundled_models,
    inference_network,
    inference_network_2d,
    loaded_model,
    loaded_unet2d,
    loaded_unet3d,
    resolve_model,
)
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

SETTINGS = UNet3DSettings(2, 2, 2, batch_norm=True, decoder_dropout=0.2)


@pytest.fixture
def network():
    torch.manual_seed(1)
    return UNet3D(SETTINGS).eval()


@pytest.fixture
def descriptor_class(monkeypatch):
    """DeePiCt's class, importable only while the test writes files."""

    class ModelDescriptor:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    ModelDescriptor.__module__ = "constants.statistics"
    ModelDescriptor.__qualname__ = "ModelDescriptor"
    package, module = types.ModuleType("constants"), types.ModuleType("constants.statistics")
    module.ModelDescriptor = ModelDescriptor
    monkeypatch.setitem(sys.modules, "constants", package)
    monkeypatch.setitem(sys.modules, "constants.statistics", module)
    return ModelDescriptor


@pytest.fixture
def network_2d():
    torch.manual_seed(1)
    return UNet2D(UNet2DSettings(2, 4, 2)).eval()


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def deepict_content(network, descriptor=None, prefix=""):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    content = {"epoch": 7, "model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.25}
    return content if descriptor is None else {"model_descriptor": descriptor, **content}


@pytest.mark.parametrize(
    ("name", "expected", "classes"),
    [
        ("blob_D2_IF4_BN", (2, 4, 1, True), ("blob",)),
        ("rand_D2_IF4_noBN", (2, 4, 1, False), ("blob",)),
        ("rand_D3_IF8_BN_2lab", (3, 8, 2, True), ("blob", "shell")),
        ("ref_training_epoch0_D2_IF4_BN", (2, 4, 1, True), ("blob",)),
    ],
)
def test_checkpoints_of_deepict_are_read_whole(golden, name, expected, classes):
    path = golden / "deepict" / "models" / f"{name}.pth"
    model = load_checkpoint(path)
    s = model.settings
    assert (s.depth, s.initial_features, s.n_classes, s.batch_norm) == expected
    assert model.class_names == classes
    assert model.voxel_spacing_angstrom is None
    assert not model.network.training
    # oracle: torch's own reading of the same zip, restricted to tensors
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        first = np.frombuffer(archive.read(f"{root}/data/0"), dtype="<f4")
    found = model.network.state_dict()["encoder.0.0.weight"].numpy().ravel()
    assert np.array_equal(found, first[: found.size])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_both_torch_layouts_and_the_data_parallel_prefix_are_read(
    tmp_path, network, descriptor_class, legacy, prefix
):
    descriptor = descriptor_class(depth=2, initial_features=2, output_classes=2, batch_norm=True,
                                  semantic_classes=["a", "b"], decoder_dropout=0.2)  # fmt: skip
    path = tmp_path / "m.pth"
    torch.save(
        deepict_content(network, descriptor, prefix),
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    model = load_checkpoint(path)
    assert same_weights(model.network, network)
    assert model.class_names == ("a", "b")
    assert model.settings == SETTINGS
    assert (model.card["final_epoch"], model.card["final_loss"]) == (7, 0.25)


def test_a_checkpoint_without_descriptor_is_understood_from_its_shapes(tmp_path, network):
    torch.save(deepict_content(network), tmp_path / "m.pth")
    model = load_checkpoint(tmp_path / "m.pth")
    assert same_weights(model.network, network)
    assert model.class_names == ("class_0", "class_1")


def test_a_descriptor_with_missing_fields_is_enough(tmp_path, network, descriptor_class):
    torch.save(deepict_content(network, descriptor_class(depth=2)), tmp_path / "m.pth")
    assert load_checkpoint(tmp_path / "m.pth").settings.n_classes == 2


def test_a_bare_state_dict_is_enough(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "m.pth")
    assert same_weights(load_checkpoint(tmp_path / "m.pth").network, network)


def test_old_checkpoints_without_batch_counters_are_read(tmp_path, network):
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "m.pth")
    assert same_weights(load_checkpoint(tmp_path / "m.pth").network, network)


def test_cells_as_positions_are_seen_from_the_shapes_and_not_written_for_deepict(tmp_path):
    settings = UNet3DSettings(2, 4, 3, space_to_depth=2)
    torch.save(UNet3D(settings).state_dict(), tmp_path / "m.pth")
    model = load_checkpoint(tmp_path / "m.pth")
    assert model.settings == settings
    assert model.settings.align == 8
    with pytest.raises(ModelFileError, match="space_to_depth 2, which its program cannot read"):
        save_deepict_checkpoint(tmp_path / "again.pth", model)


def test_a_descriptor_that_contradicts_the_shapes_is_refused(tmp_path, network, descriptor_class):
    torch.save(deepict_content(network, descriptor_class(depth=3)), tmp_path / "m.pth")
    with pytest.raises(ModelFileError, match=r"depth = 3, but its tensors have 2"):
        load_checkpoint(tmp_path / "m.pth")


def test_tensors_of_another_network_are_refused_with_their_names(tmp_path, network):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"3D U-Net.*fc\.weight"):
        load_checkpoint(tmp_path / "a.pth")
    state = network.state_dict()
    state["base.0.weight"] = torch.zeros(1, 2, 3, 3, 3)
    del state["base.3.bias"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(ModelFileError, match=r"base\.3\.bias is missing.*base\.0\.weight has sh"):
        load_checkpoint(tmp_path / "b.pth")


class Attack:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def written(layout: str, content) -> bytes:
    stream = io.BytesIO()
    if layout == "pickle":
        pickle.dump(content, stream)
    else:
        torch.save(content, stream, _use_new_zipfile_serialization=layout == "zip")
    return stream.getvalue()


@pytest.mark.parametrize("layout", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"posix\.system"),
        (eval, r"(builtins|__builtin__)\.eval"),
        (getattr, r"(builtins|__builtin__)\.getattr"),
        (torch.load, r"torch\.serialization\.load"),
        (pickle.loads, r"pickle\.loads"),
    ],
)
def test_a_file_that_wants_to_run_code_is_refused_by_the_codes_name(
    tmp_path, layout, function, name
):
    trace = tmp_path / "ran"
    argument = f"open({str(trace)!r}, 'w')" if function is eval else f"touch {trace}"
    path = tmp_path / "m.pth"
    path.write_bytes(written(layout, {"model_state_dict": Attack(function, argument)}))
    with pytest.raises(ModelFileError, match=name) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert not trace.exists()


def test_a_pickled_network_is_refused_by_its_class(tmp_path, network):
    torch.save(network, tmp_path / "m.pth")
    with pytest.raises(ModelFileError, match=r"deepict_dask\.models\.unet3d\.UNet3D.*state_dict"):
        load_checkpoint(tmp_path / "m.pth")


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return stream.getvalue()


WRONG_FILES = {
    "text": (b"depth: 2\nfeatures: 4\n", "a text file"),
    "empty": (b"", "an empty file"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "mrc": (b"\0" * 208 + b"MAP " + b"\0" * 900, "an MRC volume"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "a damaged or truncated HDF5 file"),
    "keras archive": (zipped("config.json", "model.weights.h5"), "Keras archive: load it in Keras"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 50, "gzip"),
    "zip": (zipped("readme.txt"), r"a zip archive \(with readme.txt\)"),
    "torchscript": (zipped("net/constants.pkl"), "TorchScript"),
    "noise": (bytes(range(128, 256)), "not a kind of file known"),
    "pickled list": (pickle.dumps([1, 2]), "found list"),
    "pickled dict": (pickle.dumps({"a": 1}), r"found the keys \['a'\]"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_another_kind_of_file_is_refused_with_what_it_looks_like(tmp_path, kind):
    data, words = WRONG_FILES[kind]
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    for read in (load_checkpoint, model_info):
        with pytest.raises(ModelFileError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


def test_a_folder_and_an_absent_file_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="found a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(ModelFileError, match="No such file"):
        load_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, network, layout):
    whole = tmp_path / "whole"
    if layout == "safetensors":
        save_model(whole, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
        data = whole.read_bytes()
    else:
        data = written(layout, deepict_content(network))
    cut = tmp_path / "cut"
    for n_bytes in [1, 9, 20, 100, *range(500, len(data) - 1, len(data) // 25), len(data) - 1]:
        cut.write_bytes(data[:n_bytes])
        with pytest.raises(ModelFileError):
            load_checkpoint(cut)


def test_a_flipped_byte_in_the_weights_of_an_archive_is_noticed(tmp_path, network):
    data = bytearray(written("zip", deepict_content(network)))
    weights = network.state_dict()["base.3.weight"].numpy().tobytes()
    data[data.index(weights) + 10] ^= 0xFF
    (tmp_path / "m.pth").write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="damaged"):
        load_checkpoint(tmp_path / "m.pth")


def test_a_saved_model_comes_back_whole_and_saves_the_same_bytes(tmp_path, network):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        save_model(
            path,
            network,
            class_names=["ribosome", "membrane"],
            voxel_spacing_angstrom=13.48,
            card={"trained_on": ["TS_001"], "validation_dice": 0.9},
        )
    model = load_checkpoint(paths[0])
    assert same_weights(model.network, network)
    assert model.settings == SETTINGS
    assert model.class_names == ("ribosome", "membrane")
    assert model.voxel_spacing_angstrom == 13.48
    assert model.card == {"trained_on": ["TS_001"], "validation_dice": 0.9}
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_saved_2d_model_comes_back_whole(tmp_path, network_2d):
    path = tmp_path / "m.safetensors"
    save_model(path, network_2d, class_names=["mito", "er"], voxel_spacing_angstrom=13.5,
               card={"tile": [288, 288]})  # fmt: skip
    model, info = load_checkpoint(path), model_info(path)
    assert same_weights(model.network, network_2d)
    assert model.settings == info.settings == UNet2DSettings(2, 4, 2)
    assert (model.kind, info.kind) == ("unet2d", "unet2d")
    assert (info.halo, info.align) == (network_2d.settings.halo, 4)
    assert info.n_parameters == sum(p.numel() for p in network_2d.parameters())
    assert info.card == {"tile": [288, 288]}


def test_the_kind_is_seen_from_the_shapes_where_a_file_does_not_say_it(tmp_path, network_2d):
    torch.save(network_2d.state_dict(), tmp_path / "m.pth")
    model = load_checkpoint(tmp_path / "m.pth")
    assert model.kind == "unet2d"
    assert same_weights(model.network, network_2d)


def test_a_file_that_states_another_kind_than_its_tensors_have_is_refused(tmp_path, network_2d):
    path = tmp_path / "m.safetensors"
    save_model(path, network_2d, class_names=["a", "b"], voxel_spacing_angstrom=None)
    data = path.read_bytes()
    for kind, words in (("unet3d", "kind = unet3d, but.*unet2d"), ("unet4d", "found 'unet4d'")):
        path.write_bytes(data.replace(b"unet2d", kind.encode()))
        with pytest.raises(ModelFileError, match=words):
            model_info(path)


def test_a_model_of_the_other_kind_is_refused_with_both_kinds(tmp_path, network, network_2d):
    flat, solid = tmp_path / "flat.safetensors", tmp_path / "solid.safetensors"
    save_model(flat, network_2d, class_names=["a", "b"], voxel_spacing_angstrom=None)
    save_model(solid, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    assert loaded_unet2d(flat) is loaded_model(flat).network
    assert loaded_unet3d(solid) is loaded_model(solid).network
    assert inference_network_2d(flat) is inference_network_2d(flat)
    for load in (loaded_unet3d, inference_network):
        with pytest.raises(ModelFileError, match=r"flat.*expected a 3D model, found a 2D one"):
            load(flat)
    for load in (loaded_unet2d, inference_network_2d):
        with pytest.raises(ModelFileError, match=r"solid.*expected a 2D model, found a 3D one"):
            load(solid)


def test_a_model_with_the_wrong_number_of_classes_is_not_written(tmp_path, network):
    with pytest.raises(ModelFileError, match="expected 2 class names"):
        save_model(tmp_path / "m", network, class_names=["a"], voxel_spacing_angstrom=None)
    assert not (tmp_path / "m").exists()


def test_a_card_that_json_cannot_hold_is_refused(tmp_path, network):
    with pytest.raises(ModelFileError, match="JSON"):
        save_model(tmp_path / "m", network, class_names=["a", "b"], voxel_spacing_angstrom=1.0,
                   card={"loss": float("nan")})  # fmt: skip


def test_model_info_counts_parameters_without_weights(tmp_path, network, monkeypatch):
    path = tmp_path / "m.pth"
    torch.save(deepict_content(network), path)
    monkeypatch.setattr("deepict_dask.models.torch_file.TorchFile.tensor", None)
    info = model_info(path)
    assert info.n_parameters == sum(p.numel() for p in network.parameters())
    assert (info.halo, info.align, info.settings.depth) == (24, 4, 2)


def test_a_model_is_loaded_once_and_again_only_when_its_file_changes(tmp_path, network):
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    first = loaded_model(path)
    assert loaded_model(str(path)) is first
    assert inference_network(path) is inference_network(path)
    save_model(path, network, class_names=["c", "d"], voxel_spacing_angstrom=None)
    os.utime(path, ns=(1, 1))
    assert loaded_model(path).class_names == ("c", "d")


def test_a_model_is_found_by_path_or_refused_with_the_bundled_names(tmp_path, network):
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    assert resolve_model(path) == path
    for name, bundled in bundled_models().items():
        assert resolve_model(name) == bundled
    with pytest.raises(ModelFileError, match=r"no_such_model: no such model file; bundled models"):
        resolve_model("no_such_model")


def test_a_device_that_is_not_there_is_refused(tmp_path, network):
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    with pytest.raises(DeviceError, match="expected cpu, cuda"):
        loaded_model(path, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA GPU"):
            loaded_model(path, "cuda")
