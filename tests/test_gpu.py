"""The same kernels wherever the arrays are: NumPy, a strict stand-in for CuPy, a GPU.

Each test computes with NumPy and in a place, and compares. The place "stand-in" runs everywhere and
shows every silent trip to the host; "cuda" needs a GPU and says why it was skipped without one.
"""

import inspect
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import standin_cupy as standin
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_gpu import yardstick
from deepict_dask.backend import (
    Device,
    is_on_device,
    namespace_of,
    resolve_device,
    to_device,
    to_host,
)
from deepict_dask.config import EqualizeSettings, PickSettings, SegmentSettings
from deepict_dask.core.errors import DeviceError
from deepict_dask.core.geometry import Block, Box, Grid
from deepict_dask.core.statistics import StatisticsReduction
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.spectrum import write_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume
from deepict_dask.jobs.picking.choose_and_label import ChooseAndLabel
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.picking.predict_and_label import LabelledChannel, PredictAndLabel
from deepict_dask.jobs.picking.predicted import PickSection, pick_predicted
from deepict_dask.jobs.picking.score_range import score_range
from deepict_dask.jobs.segmenting.windows import segment_together
from deepict_dask.jobs.session import Session
from deepict_dask.labelling import LabelReduction, RelabelOp, SelectSettings, device_measure
from deepict_dask.labelling.measure import first_voxels, measure_components
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.particles.mean_pool_nms import MeanPoolReduction, MeanPoolSettings
from deepict_dask.segmentation import windows
from deepict_dask.segmentation.joint import JointSegmentOp
from deepict_dask.segmentation.windows import SegmentOp, normalise, pad_far_end, predict_window

pytestmark = pytest.mark.usefixtures("nothing_said_before")
GPU = Device("cuda")
SHAPE = (9, 14, 11)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    """Make ``Device("cuda")`` work: as the stand-in, or as what it is."""
    if request.param == "stand-in":
        request.getfixturevalue("stand_in")
        return "stand-in"
    try:
        resolve_device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    return "cuda"


def on(array):
    return to_device(array, GPU)


def noise(shape=SHAPE, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def blobs(shape=SHAPE, seed=0):
    """Scores 0..1 with some voxels in clumps of all sizes."""
    return np.random.default_rng(seed).random(shape, np.float32) ** 2


# --- the stand-in is as strict as CuPy


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "silent",
    [
        np.asarray,
        np.concatenate,
        np.unique,
        lambda x: x + np.ones(3),
        lambda x: np.ones(3) + x,
        lambda x: x[np.array([0])],
        lambda x: np.add.reduce(x),
        lambda x: x.max(initial=0),
        lambda x: namespace_of(x).add.at(x.astype("int64"), x.astype("int64"), 1),
        lambda x: namespace_of(x).linalg,
    ],
)
def test_a_silent_trip_to_the_host_or_what_cupy_lacks_is_an_error(silent):
    with pytest.raises((TypeError, AttributeError)):
        silent(on(np.zeros(3)))


def test_what_the_stand_in_offers_cupy_has():
    cupy = pytest.importorskip("cupy")
    fft = pytest.importorskip("cupyx.scipy.fft")
    assert [name for name in standin.FUNCTIONS if not hasattr(cupy, name)] == []
    assert {"fft", "ifft", "rfft", "rfft2", "irfft", "irfft2"} <= set(dir(fft))
    parameters = set(inspect.signature(cupy.pad).parameters)
    assert {"array", "pad_width"} <= parameters


# --- equalization


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("shape", [(16, 20, 24), (9, 15, 11)])
@pytest.mark.parametrize("mode", ["physical", "deepict"])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_equalization_is_that_of_the_cpu(shape, mode, dtype):
    volume = (20 * noise(shape)).astype(dtype)
    compat = mode == "deepict"
    target = radial_spectrum(noise((16, 20, 24), seed=1), 10.0, compat=compat)
    op = EqualizeOp(target, 10.0, mode=mode, cutoff=0 if compat else 0.03, smoothing=0)
    expected = op.transform(volume.copy())
    there = op.transform(on(volume))
    assert is_on_device(there)
    moved = replace(op, device="cuda").transform(volume.copy())
    assert isinstance(moved, np.ndarray)
    for found in (to_host(there), moved):
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("compat", [False, True])
def test_a_spectrum_is_that_of_the_cpu(compat):
    volume = noise((12, 14, 18))
    expected = radial_spectrum(volume, 10.0, compat=compat).intensity
    found = radial_spectrum(on(volume), 10.0, compat=compat).intensity
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- threshold, labels, tables


SELECTIONS = [
    SelectSettings(threshold=0.6),
    SelectSettings(threshold=0.5, border=(1, 2, 3), border_end=(0, 1, 2), intersect=0b01),
]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("n_regions", [0, 2])
def test_a_labelled_chunk_is_that_of_the_cpu(select, connectivity, n_regions):
    if select.intersect and not n_regions:
        pytest.skip("there is nothing to intersect with")
    shape = (30, 30, 30)
    box = Box((3, 0, 5), tuple(a + n for a, n in zip((3, 0, 5), SHAPE, strict=True)))
    block = Block(0, (0, 0, 0), box, box)
    reduction = LabelReduction(shape, select, connectivity, n_regions=n_regions)
    bits = np.random.default_rng(1).integers(0, 4, SHAPE, np.uint8) if n_regions else None
    sources = [blobs()] if bits is None else [blobs(), bits]
    expected = reduction.measure(block, *sources)
    found = reduction.measure(block, *map(on, sources))
    same_node(found, expected)


def same_node(found, expected):
    """Two nodes of one box, whose labels may be numbered differently on the way."""
    assert found.box == expected.box
    assert found.n_finished == expected.n_finished
    assert found.open_rows.tobytes() == expected.open_rows.tobytes()
    by_name = [
        np.take(node.kept, np.argsort(node.kept["first_voxel"])) for node in (found, expected)
    ]
    assert by_name[0].tobytes() == by_name[1].tobytes()
    assert found.faces.keys() == expected.faces.keys()
    for key, face in found.faces.items():
        np.testing.assert_array_equal(face, expected.faces[key])


@given(seed=st.integers(0, 99), piece=st.sampled_from([7, 64, 10**6]))
def test_rows_made_on_a_device_are_the_last_bit_of_those_of_the_host(seed, piece):
    # the lines for a device, on NumPy arrays: hundreds of cases without a stand-in
    score = blobs(seed=seed) - np.float32(0.3)
    labels, n = _labels(score > 0.2)
    box = Box((0, 2, 4), tuple(a + m for a, m in zip((0, 2, 4), SHAPE, strict=True)))
    bits = np.random.default_rng(seed).integers(0, 8, SHAPE, np.uint8)
    wishes = {"box": box, "shape": (30, 30, 30), "n_regions": 3}
    expected = measure_components(labels, n, score, bits, **wishes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_measure, "DEVICE_PIECE_VOXELS", piece)
        found = device_measure.measure_on_device(labels, n, score, bits, **wishes)
        names = device_measure.first_voxels_on_device(labels, n, box, (30, 30, 30))
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(names, first_voxels(labels, n, box, (30, 30, 30)))


def _labels(chosen):
    from deepict_dask.backend import label_components

    return label_components(chosen, 26)


@pytest.mark.usefixtures("stand_in")
def test_only_faces_and_tables_leave_the_device():
    shape = (40, 40, 40)
    box = Box((0, 0, 0), (20, 40, 40))
    reduction = LabelReduction(shape, SelectSettings(threshold=0.9), 6)
    score = on(blobs(box.shape))
    standin.transfers.to_host.clear()
    reduction.measure(Block(0, (0, 0, 0), box, box), score)
    face = 4 * 40 * 40
    assert standin.transfers.to_host.count(face) == 1
    rows = max(n for n in standin.transfers.to_host if n != face)
    assert rows < score.size / 2


@pytest.mark.usefixtures("place")
def test_arrays_of_two_places_are_refused_by_a_kernel():
    box = Box.whole(SHAPE)
    reduction = LabelReduction(SHAPE, SelectSettings(threshold=0.5), n_regions=1)
    bits = np.ones(SHAPE, np.uint8)
    with pytest.raises(DeviceError, match="GPU, GPU, host"):
        reduction.measure(Block(0, (0, 0, 0), box, box), on(blobs()), bits)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("as_label_map", [False, True])
def test_the_segmentation_is_that_of_the_cpu(as_label_map):
    names = SimpleNamespace(
        renames_above=lambda _block: [np.array([[5, 2]])],
        kept_names=lambda: np.sort(np.random.default_rng(0).permutation(1000)[:300]),
    )
    op = RelabelOp(SHAPE, SelectSettings(label_value=1), names, 26, as_label_map)
    voxels = (blobs() > 0.6).astype(np.uint8)
    (block,) = Grid(SHAPE, SHAPE)
    expected = op.apply(block, voxels)
    found = replace(op, device="cuda").apply(block, voxels)
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


class Written:
    """A writer that keeps what it was given."""

    path, write_shape = "memory", SHAPE

    def __init__(self, shape=SHAPE):
        self.voxels = np.full(shape, 9, np.uint8)

    def write(self, box, voxels):
        assert isinstance(voxels, np.ndarray)
        self.voxels[box.slices] = voxels


@pytest.mark.usefixtures("place")
def test_stored_scores_are_labelled_as_on_the_cpu():
    (block,) = Grid(SHAPE, SHAPE)
    reduction = LabelReduction(SHAPE, SelectSettings(threshold=0.5))
    nodes, written = [], []
    for device in ("cpu", "cuda"):
        written.append(Written())
        nodes.append(ChooseAndLabel(reduction, written[-1], device=device).measure(block, blobs()))
    same_node(nodes[1], nodes[0])
    np.testing.assert_array_equal(written[1].voxels, written[0].voxels)


@pytest.mark.usefixtures("place")
def test_the_range_of_scores_is_that_of_the_cpu():
    (block,) = Grid(SHAPE, SHAPE)
    statistics = StatisticsReduction()
    expected = statistics.finalize(score_range(block, blobs()))
    found = statistics.finalize(score_range(block, on(blobs())))
    assert (found.count, found.minimum, found.maximum) == (
        expected.count, expected.minimum, expected.maximum,
    )  # fmt: skip
    assert (found.mean, found.std) == pytest.approx((expected.mean, expected.std), rel=1e-12)


# --- mean-pooling suppression


@pytest.mark.usefixtures("place")
def test_mean_pooling_finds_what_it_finds_on_the_cpu():
    shape = (24, 24, 24)
    reduction = MeanPoolReduction(MeanPoolSettings.of_diameters([5], threshold=0.4))
    block = Grid(shape, (24, 24, 16), reduction.halo)[0]
    score = blobs(shape)[block.read.slices]
    expected = reduction.measure(block, score).rows
    found = replace(reduction, device="cuda").measure(block, score).rows
    assert len(expected) > 0
    np.testing.assert_array_equal(found, expected)


# --- windows of a network


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "uint8"])
def test_a_window_is_prepared_as_on_the_cpu(dtype):
    volume = (30 + 5 * noise()).astype(dtype)
    expected = pad_far_end(normalise(volume, 30.0, 5.0), 4)
    found = pad_far_end(normalise(on(volume), 30.0, 5.0), 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-6, atol=1e-7)


def network(n_classes=2, depth=1):
    torch.manual_seed(0)
    settings = UNet3DSettings(depth=depth, initial_features=4, n_classes=n_classes)
    made = UNet3D(settings).eval()
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.normal_()
    return made


@pytest.fixture
def loaded(monkeypatch, place):
    """Give ops a network without a file, in the place where arrays are."""
    from deepict_dask.models.inference import InferenceUNet3D

    made = network()
    where = {"cpu": "cpu", "cuda": "cuda" if place == "cuda" else "cpu"}

    def load(_path, device="cpu", precision="float32"):
        return InferenceUNet3D(network().to(where[device]), precision)

    monkeypatch.setattr(windows, "inference_network", load)
    monkeypatch.setattr(windows, "loaded_unet3d", lambda _path: made)
    return place


def op_on(device, n=1):
    return JointSegmentOp(
        tuple(SegmentOp("none", 0.0, 1.0, c if n > 1 else None, device) for c in range(n))
    )


@pytest.mark.usefixtures("loaded")
def test_scores_stay_on_the_device_and_share_the_memory_of_pytorch():
    (block,) = Grid(SHAPE, SHAPE, (0, 0, 0), 2)
    standin.transfers.to_host.clear()
    scores = op_on("cuda").written_scores(block, noise())
    assert is_on_device(scores)
    assert standin.transfers.to_host == []
    expected = op_on("cpu").written_scores(block, noise())
    assert isinstance(expected, np.ndarray)
    np.testing.assert_allclose(to_host(scores), expected, atol=1e-4)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("n_networks", [1, 2])
def test_scores_that_are_stored_come_to_the_host(n_networks):
    shape = (40, 40, 40)
    expected, found = op_on("cpu", n_networks), op_on("cuda", n_networks)
    block = Grid(shape, (40, 40, 20), expected.halo, expected.align, one_shape=True)[1]
    window = noise(shape)[block.read.slices]
    there = found.apply(block, window)
    assert isinstance(there, np.ndarray)
    np.testing.assert_allclose(
        block.crop(there), block.crop(expected.apply(block, window)), atol=1e-4
    )


def one_pass(device, threshold=0.5):
    label = LabelReduction(SHAPE, SelectSettings(threshold=threshold))
    writers = (Written(), Written())
    sections = tuple(LabelledChannel(channel, label) for channel in range(2))
    return PredictAndLabel(op_on(device), sections, (4, 4, 4), writers)


def test_from_a_window_to_tables_nothing_but_the_chosen_voxels_and_rows_leaves(loaded):
    (block,) = Grid(SHAPE, SHAPE, (0, 0, 0), 2)
    scores = op_on("cpu").written_scores(block, noise())
    threshold = float(np.median(scores))
    passes = [one_pass(device, threshold) for device in ("cpu", "cuda")]
    standin.transfers.to_host.clear()
    nodes = [each.measure(block, noise()) for each in passes]
    n = np.prod(SHAPE)
    if loaded == "stand-in":
        assert standin.transfers.to_host.count(n) == 2  # the voxels chosen, a byte each
        assert max(size for size in standin.transfers.to_host if size != n) < 4 * n / 2
        for found, expected in zip(nodes[1].nodes, nodes[0].nodes, strict=True):
            same_node(found, expected)
    for on_gpu, on_cpu in zip(passes[1].writers, passes[0].writers, strict=True):
        changed = np.count_nonzero(on_gpu.voxels != on_cpu.voxels)
        assert changed <= max(1, n / 10_000)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_moves_few_voxels_over_the_threshold(place, precision):
    from deepict_dask.models.inference import InferenceUNet3D

    where = "cuda" if place == "cuda" else "cpu"
    window = noise((16, 24, 32))
    exact = predict_window(network().to(where), on(window))
    half = predict_window(InferenceUNet3D(network().to(where), precision), on(window))
    exact, half = to_host(exact), to_host(half)
    assert np.abs(exact - half).max() < (5e-3 if precision == "float16" else 5e-2)
    assert (exact != half).any()


# --- whole jobs: files in, files out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tomogram, a spectrum and a model that chooses one voxel of noise in twenty."""
    folder = tmp_path_factory.mktemp("gpu")
    writer = create_ome_zarr(folder / "t.zarr", VolumeHeader((32, 48, 40), "float32", 10.0))
    writer.write(Box.whole((32, 48, 40)), noise((32, 48, 40)))
    card = {"class_names": ("a",), "voxel_spacing_angstrom": 10.0, "card": {}}
    save_model(folder / "m.safetensors", yardstick(), **card)
    write_spectrum(folder / "s.tsv", radial_spectrum(noise((24, 24, 24), seed=3), 10.0))
    return folder


def session_on(device, workers):
    return Session(workers, chunks=(16, 16, 16), overwrite=True, device=device)


@pytest.fixture
def network_in_place(monkeypatch, place):
    """Let PyTorch compute on the CPU where the stand-in is the GPU."""
    load = windows.inference_network
    if place == "stand-in":
        monkeypatch.setattr(
            windows,
            "inference_network",
            lambda path, _device, precision: load(path, "cpu", precision),
        )
    return place


def voxels_of(path):
    reader = open_volume(path)
    return reader.read(Box.whole(reader.header.shape))


@pytest.mark.usefixtures("place")
def test_an_equalized_file_is_that_of_the_cpu(two_workers, files, tmp_path):
    settings = EqualizeSettings(target=files / "s.tsv")
    found = []
    for device in ("cpu", "cuda"):
        target = tmp_path / f"{device}.zarr"
        equalize_volume(session_on(device, two_workers), files / "t.zarr", target, settings)
        found.append(voxels_of(target))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


@pytest.mark.usefixtures("network_in_place")
def test_stored_scores_and_their_picks_are_those_of_the_cpu(two_workers, files, tmp_path):
    scores, tables = [], []
    model = SegmentSettings(model=str(files / "m.safetensors"))
    for device in ("cpu", "cuda"):
        session = session_on(device, two_workers)
        target = tmp_path / f"{device}.zarr"
        segment_together(session, files / "t.zarr", {target: model})
        scores.append(voxels_of(target))
        picks = tmp_path / f"{device}_picks"
        wanted = PickSettings(threshold=0.5, min_size=4, label_map=True)
        pick_particles(session, tmp_path / "cpu.zarr", picks, wanted, tomogram_name="t")
        tables.append(picks)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    same_picks(*tables)


def same_picks(one, other):
    names = ("clusters.parquet", "picks.csv", "segmentation.zarr", "label_map.zarr")
    compared = 0
    for name in names:
        if name.endswith(".zarr") and (one / name).exists():
            np.testing.assert_array_equal(voxels_of(other / name), voxels_of(one / name))
            compared += 1
        elif (one / name).is_file():
            assert (other / name).read_bytes() == (one / name).read_bytes()
            compared += 1
    assert compared >= 2
    assert len((one / "picks.csv").read_text().splitlines()) > 3


@pytest.mark.parametrize("free_gib", [80, 2])
def test_the_picks_of_one_pass_are_those_of_the_cpu(
    two_workers, files, tmp_path, network_in_place, free_gib, monkeypatch
):
    if network_in_place == "stand-in":
        for name, module in standin.modules(free_bytes=free_gib << 30).items():
            monkeypatch.setitem(sys.modules, name, module)
    section = PickSection(
        SegmentSettings(model=str(files / "m.safetensors")),
        PickSettings(threshold=0.5, min_size=4),
        {},
    )
    for device in ("cpu", "cuda"):
        session = session_on(device, two_workers)
        wanted = {tmp_path / device: section}
        pick_predicted(session, files / "t.zarr", wanted, tomogram_name="t")
    same_picks(tmp_path / "cpu", tmp_path / "cuda")
