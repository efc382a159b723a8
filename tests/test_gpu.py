"""The same kernels wherever the arrays are: each test computes with NumPy, and in a place.

`gpu_places` has the places.
"""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import standin_cupy as standin
from gpu_places import SHAPE, Written, blobs, noise, on, place, same_node
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.backend import is_on_device, namespace_of, to_host
from deepict_dask.core.errors import DeviceError
from deepict_dask.core.geometry import Block, Box, Grid
from deepict_dask.core.statistics import StatisticsReduction
from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.jobs.picking.choose_and_label import ChooseAndLabel
from deepict_dask.jobs.picking.score_range import score_range
from deepict_dask.labelling import LabelReduction, RelabelOp, SelectSettings, device_measure
from deepict_dask.labelling.measure import first_voxels, measure_components
from deepict_dask.particles.mean_pool_nms import MeanPoolReduction, MeanPoolSettings

__all__ = ["place"]
pytestmark = pytest.mark.usefixtures("nothing_said_before")


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


@pytest.mark.usefixtures("place")
def test_the_highest_scores_of_a_float64_map_are_exact():
    """CuPy's atomic maximum of float64 numbers is that of float32."""
    box = Box((0, 0, 0), SHAPE)
    score = np.random.default_rng(0).normal(size=SHAPE) - 2.0
    labels = np.random.default_rng(1).integers(0, 40, SHAPE, np.int32)
    wishes = {"box": box, "shape": SHAPE, "n_regions": 0}
    expected = measure_components(labels, 39, score, None, **wishes)
    found = device_measure.measure_on_device(on(labels), 39, on(score), None, **wishes)
    np.testing.assert_array_equal(found["score_max"], expected["score_max"])
    assert (expected["score_max"] != expected["score_max"].astype(np.float32)).any()


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
