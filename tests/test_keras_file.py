"""Keras HDF5 files of the 2D network: every layout that is written, and all that does not fit."""

from __future__ import annotations

import copy
import io
import json

import h5py
import numpy as np
import pytest
import torch

from deepict_dask.core.errors import ModelFileError
from deepict_dask.models.checkpoint import load_checkpoint, model_info
from deepict_dask.models.keras_file import read_keras_file
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings

CONV, UP = "Conv2D", "Conv2DTranspose"
DEPTH_2 = [
    ("encoder.0.0", CONV), ("encoder.0.2", CONV), ("encoder.1.0", CONV), ("encoder.1.2", CONV),
    ("base.0", CONV), ("base.2", CONV),
    ("upsamplers.0", UP), ("decoder.0.0", CONV), ("decoder.0.2", CONV),
    ("upsamplers.1", UP), ("decoder.1.0", CONV), ("decoder.1.2", CONV),
    ("out_conv", CONV),
]  # fmt: skip
"""The layers of a U-Net of depth 2 in the data's order, written out by hand."""


@pytest.fixture
def network() -> UNet2D:
    torch.manual_seed(3)
    return UNet2D(UNet2DSettings(2, 2, 1)).eval()


def keras_names(first: int = 0) -> list[str]:
    """Names as Keras counts them when other models were built before: each class by itself."""
    counts = {CONV: first, UP: first}
    names = []
    for _, kind in DEPTH_2:
        stem = "conv2d" if kind == CONV else "conv2d_transpose"
        names.append(stem if counts[kind] == 0 else f"{stem}_{counts[kind]}")
        counts[kind] += 1
    return names


def arrays(network: UNet2D, dtype: str = "<f4") -> list[dict[str, np.ndarray]]:
    """Kernels as Keras has them: (y, x, in, out), transposed ones (y, x, out, in)."""
    state = network.state_dict()
    found = []
    for name, kind in DEPTH_2:
        weight = state[f"{name}.weight"].numpy()
        # PyTorch: (out, in, y, x), transposed ones (in, out, y, x)
        kernel = np.einsum("oiyx->yxio" if kind == CONV else "ioyx->yxoi", weight)
        found.append(
            {"kernel": kernel.astype(dtype), "bias": state[f"{name}.bias"].numpy().astype(dtype)}
        )
    return found


def config(names: list[str], keras: int = 2) -> dict:
    """What Keras says of the network, as far as a reader may care."""
    layers = []

    def add(kind, name, inputs, **settings):
        if keras == 2:
            nodes = [[[i, 0, 0, {}] for i in inputs]] if inputs else []
        else:
            tensors = [
                {"class_name": "__keras_tensor__", "config": {"keras_history": [i, 0, 0]}}
                for i in inputs
            ]
            nodes = [{"args": [tensors], "kwargs": {}}] if inputs else []
        config = {"name": name, **settings}
        layers.append({"class_name": kind, "config": config, "inbound_nodes": nodes})
        return name

    shape = {"batch_input_shape" if keras == 2 else "batch_shape": [None, 96, 64, 1]}
    x, kept = add("InputLayer", "img", [], **shape), []
    names_left = iter(names)
    convolution = {"kernel_size": [3, 3], "padding": "same", "activation": "linear",
                   "data_format": "channels_last", "dilation_rate": [1, 1]}  # fmt: skip

    def conv(x):
        name = add(CONV, next(names_left), [x], strides=[1, 1], **convolution)
        return add("Activation", f"relu_of_{name}", [name], activation="relu")

    for level in range(2):
        x = conv(conv(x))
        kept.append(x)
        x = add("MaxPooling2D", f"pool_{level}", [x], pool_size=[2, 2], strides=[2, 2])
    x = conv(conv(x))
    for level in range(2):
        x = add(UP, next(names_left), [x], strides=[2, 2], **convolution)
        x = conv(conv(add("Concatenate", f"concatenate_{level}", [x, kept.pop()], axis=3)))
    last = {**convolution, "kernel_size": [1, 1], "padding": "valid", "activation": "sigmoid"}
    add(CONV, next(names_left), [x], strides=[1, 1], **last)
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers}}


def written(
    layers: list[dict[str, np.ndarray]],
    names: list[str],
    *,
    described: dict | None = None,
    as_bytes: bool = False,
    suffix: str = ":0",
    reverse: bool = False,
) -> bytes:
    """A file as Keras writes it: a whole model where it is described, else weights only."""
    encode = (lambda s: s.encode()) if as_bytes else str
    stream = io.BytesIO()
    with h5py.File(stream, "w", track_order=True) as file:
        root = file
        if described is not None:
            file.attrs["model_config"] = encode(json.dumps(described))
            file.attrs["keras_version"] = encode("2.3.1")
            root = file.create_group("model_weights", track_order=True)
            file.create_group("optimizer_weights")
        pairs = list(zip(names, layers, strict=True))
        for name, weights in reversed(pairs) if reverse else pairs:
            group = root.create_group(name)
            paths = [f"{name}/{part}{suffix}" for part in weights]
            group.attrs["weight_names"] = [encode(path) for path in paths]
            for path, array in zip(paths, weights.values(), strict=True):
                group[path] = array
        root.create_group("img").attrs["weight_names"] = []
        root.attrs["layer_names"] = [encode(name) for name in ["img", *names]]
    return stream.getvalue()


def same(left: UNet2D, right: UNet2D) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def loaded(tmp_path, data: bytes):
    path = tmp_path / "model.h5"
    path.write_bytes(data)
    return load_checkpoint(path)


@pytest.mark.parametrize("first", [0, 1, 7, 20])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_layers_are_matched_by_order_whatever_their_names(
    tmp_path, network, first, whole, as_bytes, reverse
):
    # from 7 on, conv2d_10 comes before conv2d_9 by name
    names = keras_names(first)
    data = written(
        arrays(network),
        names,
        described=config(names) if whole else None,
        as_bytes=as_bytes,
        reverse=reverse,
    )
    model = loaded(tmp_path, data)
    assert same(model.network, network)
    assert model.settings == UNet2DSettings(2, 2, 1)
    assert model.card == ({"tile": [96, 64], "keras_version": "2.3.1"} if whole else {})


def test_names_that_say_nothing_are_as_good(tmp_path, network):
    names = [f"layer_{7 * i % 13:02d}" for i in range(13)]
    assert same(loaded(tmp_path, written(arrays(network), names)).network, network)


def test_a_file_that_keras_3_wrote_in_the_old_format_is_read(tmp_path, network):
    names = keras_names()
    data = written(arrays(network), names, described=config(names, keras=3), suffix="")
    model = loaded(tmp_path, data)
    assert same(model.network, network)
    assert model.card["tile"] == [96, 64]


@pytest.mark.parametrize("dtype", [">f4", "<f2", "<f8", ">f8"])
def test_weights_of_every_float_type_become_float32(tmp_path, network, dtype):
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()  # exact in all of them
    model = loaded(tmp_path, written(arrays(network, dtype), keras_names()))
    assert same(model.network, network)
    assert {t.dtype for t in model.network.state_dict().values()} == {torch.float32}


def test_a_path_is_read_like_bytes(tmp_path, network):
    data = written(arrays(network), keras_names())
    path = tmp_path / "model.h5"
    path.write_bytes(data)
    for source in (path, str(path)):
        weights = read_keras_file(source).weights()
        assert all(torch.equal(weights[k], t) for k, t in network.state_dict().items())


def test_model_info_reads_no_weights(tmp_path, network, monkeypatch):
    path = tmp_path / "model.h5"
    path.write_bytes(written(arrays(network), keras_names()))
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    info = model_info(path)
    assert (info.kind, info.halo, info.align) == ("unet2d", 28, 4)
    assert info.class_names == ("class_0",)
    assert info.n_parameters == sum(p.numel() for p in network.parameters())


def test_the_golden_model_is_read_whole(golden):
    path = golden / "deepict" / "twod" / "model2d_nf2.h5"
    model = load_checkpoint(path)
    assert model.settings == UNet2DSettings(4, 8, 1)
    assert model.card == {"tile": [96, 96], "keras_version": "2.15.0"}
    # oracle: one number of each kind of kernel, by its own index
    state = model.network.state_dict()
    with h5py.File(path) as file:
        group = file["model_weights"]
        plain = group["conv2d_11/conv2d_11/kernel:0"]
        up = group["conv2d_transpose_1/conv2d_transpose_1/kernel:0"]
        assert float(state["decoder.0.2.weight"][5, 40, 0, 2]) == plain[0, 2, 40, 5]
        assert float(state["upsamplers.1.weight"][40, 5, 0, 2]) == up[0, 2, 5, 40]


def refused(tmp_path, data: bytes, words: str) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(data)
    for read in (load_checkpoint, model_info):
        with pytest.raises(ModelFileError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


def test_a_3d_keras_model_that_is_not_deepfinder_is_refused(tmp_path):
    layers = [{"kernel": np.zeros((3, 3, 3, 1, 4), "f4"), "bias": np.zeros(4, "f4")}]
    data = written(layers, ["conv3d"])
    refused(tmp_path, data, r"expected the 15 3D convolutions of DeepFinder's network, found 1")


def test_layers_beyond_a_convolution_are_refused_by_name(tmp_path, network):
    layers = arrays(network)
    layers[1] = {"gamma": np.zeros(2, "f4"), "beta": np.zeros(2, "f4")}
    names = ["conv2d", "batch_normalization", *keras_names()[2:]]
    refused(tmp_path, written(layers, names), "found layer batch_normalization with gamma")
    layers[1] = {"kernel": np.zeros((3, 3, 2, 2), "f4")}
    refused(tmp_path, written(layers, names), "layer batch_normalization with kernel")


def test_another_number_of_layers_is_refused_with_the_number(tmp_path, network):
    data = written(arrays(network)[:-1], keras_names()[:-1])
    refused(tmp_path, data, "expected the 23 layers .*found 12")


def test_another_order_is_refused_with_the_layer_and_both_shapes(tmp_path, network):
    layers = arrays(network)
    layers[1], layers[2] = layers[2], layers[1]
    refused(
        tmp_path,
        written(layers, keras_names()),
        r"not the layers .* conv2d_1 has a weight of shape \(4, 2, 3, 3\), expected \(2, 2, 3, 3\)",
    )


def test_a_plain_kernel_in_a_transposed_ones_place_is_refused(tmp_path, network):
    layers = arrays(network)
    layers[6]["kernel"] = layers[6]["kernel"].swapaxes(2, 3)
    refused(tmp_path, written(layers, keras_names()), "conv2d_transpose has a weight of shape")


def test_weights_that_are_no_floats_are_refused(tmp_path, network):
    data = written(arrays(network, "<i4"), keras_names())
    refused(tmp_path, data, "layer conv2d: expected a kernel of floats, found int32")


def changed(described: dict, name: str, **settings) -> dict:
    """The description with settings of one layer replaced."""
    described = copy.deepcopy(described)
    for layer in described["config"]["layers"]:
        if layer["config"]["name"] == name:
            layer["class_name"] = settings.pop("class_name", layer["class_name"])
            layer["config"].update(settings)
            if "inputs" in settings:
                layer["inbound_nodes"] = [[[i, 0, 0, {}] for i in settings["inputs"]]]
    return described


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("conv2d_3", {"padding": "valid"}, "layer conv2d_3: expected padding same, found valid"),
        ("conv2d_3", {"dilation_rate": [2, 2]}, r"dilation_rate \[1, 1\], found \[2, 2\]"),
        ("conv2d_transpose", {"strides": [1, 1]}, r"conv2d_transpose: expected strides \[2, 2\]"),
        ("pool_1", {"class_name": "AveragePooling2D"}, "a AveragePooling2D is not part"),
        ("pool_1", {"pool_size": [3, 3]}, r"pool_1: expected pool_size \[2, 2\], found \[3, 3\]"),
        ("relu_of_conv2d_1", {"activation": "elu"}, "found the activations relu, elu, relu"),
        ("conv2d_10", {"activation": "softmax"}, "sigmoid at the end.*relu, softmax$"),
        (
            "concatenate_0",
            {"inputs": ["relu_of_conv2d_3", "conv2d_transpose"]},
            r"concatenate_0: expected the upsampled features before.*'Activation', 'Conv2DTransp",
        ),
    ],
)
def test_a_network_that_uses_its_weights_otherwise_is_refused_by_the_layer(
    tmp_path, network, name, settings, words
):
    names = keras_names()
    assert names[-1] == "conv2d_10"
    described = changed(config(names), name, **settings)
    refused(tmp_path, written(arrays(network), names, described=described), words)


def test_activations_inside_the_convolutions_are_the_same_network(tmp_path, network):
    names = keras_names()
    described = config(names)
    layers = described["config"]["layers"]
    inside = [x for x in layers if x["class_name"] != "Activation"]
    for layer in inside:
        if layer["class_name"] == CONV and layer["config"]["name"] != names[-1]:
            layer["config"]["activation"] = "relu"
        for node in layer["inbound_nodes"]:
            for source in node:
                source[0] = source[0].removeprefix("relu_of_")
    described["config"]["layers"] = inside
    data = written(arrays(network), names, described=described)
    assert same(loaded(tmp_path, data).network, network)


def hdf5(**datasets) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for path, array in datasets.items():
            file[path.replace("__", "/")] = array
    return stream.getvalue()


def test_hdf5_files_that_are_no_model_are_refused_with_what_they_hold(tmp_path):
    refused(tmp_path, hdf5(MDF__images__0=np.zeros((2, 2))), r"another HDF5 file \(it holds MDF\)")
    refused(tmp_path, hdf5(), r"another HDF5 file \(it holds nothing\)")


def test_the_weights_files_of_keras_3_are_refused_with_the_way_out(tmp_path):
    data = hdf5(layers__conv2d__vars__0=np.zeros((3, 3, 1, 2), "f4"))
    refused(tmp_path, data, r"\.weights\.h5 file of Keras 3.*model\.save\('model\.h5'\)")


def test_a_layer_list_that_names_absent_groups_is_refused(tmp_path):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["layer_names"] = ["conv2d"]
    refused(tmp_path, stream.getvalue(), "damaged or truncated HDF5 file.*conv2d")


def test_a_truncated_model_is_refused_wherever_it_ends(tmp_path, network):
    names = keras_names()
    data = written(arrays(network), names, described=config(names))
    for n_bytes in [8, 9, 60, 100, *range(500, len(data) - 1, len(data) // 25), len(data) - 1]:
        refused(tmp_path, data[:n_bytes], "damaged or truncated HDF5 file")
