"""DeePiCt's tiling: the reference program's maps, voxel for voxel, whatever the blocks."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.core.errors import ShapeMismatchError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.fitted import FittedReader
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation.deepict_compat import (
    NEVER_PREDICTED,
    CompatSegmentOp,
    CompatTiling,
    compat_grid,
    reflected,
)
from deepict_dask.segmentation.deepict_statistics import deepict_statistics, statistics_of


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker; more threads only fight over the cores of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ArrayReader:
    """A volume in memory as the engine sees one on disk."""

    path = "array"

    def __init__(self, array):
        self.array = array
        self.header = VolumeHeader(array.shape, array.dtype.name)

    def read(self, box):
        return self.array[box.slices].copy()


def read_mrc(path):
    import mrcfile

    with mrcfile.open(path) as file:
        return np.array(file.data)


@pytest.fixture(scope="module")
def tomogram(golden):
    return read_mrc(golden / "deepict/inputs/tomo.mrc.gz")


def run(op, grid, volume, mask=None, *, every=1):
    """What the engine does, for every nth block; the others stay NaN."""
    sources = [ArrayReader(volume)]
    if mask is not None:
        sources.append(FittedReader(ArrayReader(mask), volume.shape))
    out = np.full(volume.shape, np.nan, dtype="float32")
    for block in itertools.islice(grid, 0, None, every):
        windows = [source.read(block.read) for source in sources]
        out[block.write.slices] = block.crop(op.apply(block, *windows))
    return out


BLOB, NO_BN, TWO_LABELS = "blob_D2_IF4_BN", "rand_D2_IF4_noBN", "rand_D3_IF8_BN_2lab"
PARITY = {
    "one block": (BLOB, "tomo", (160, 160, 160), 0, 1),
    "some of many blocks": (BLOB, "tomo", (40, 80, 40), 0, 5),
    "uncovered border": (NO_BN, "tomo_crop", (120, 160, 160), 0, 1),
    "uncovered border, blocks": (NO_BN, "tomo_crop", (40, 40, 80), 0, 2),
    "region mask": (NO_BN, "corner_mask", (160, 160, 160), 0, 1),
    "region mask, blocks": (NO_BN, "corner_mask", (40, 40, 80), 0, 1),
    "second of two labels": (TWO_LABELS, "tomo__class_shell", (80, 80, 40), 1, 6),
}


@pytest.mark.parametrize("case", PARITY)
def test_score_maps_are_those_of_deepict(golden, tomogram, case):
    model, name, blocks, class_index, every = PARITY[case]
    reference = read_mrc(golden / f"deepict/pred/{model}__{name}.mrc.gz")
    volume = np.array(tomogram[:95, :150, :138]) if name == "tomo_crop" else tomogram
    mask = None
    if name == "corner_mask":
        mask = read_mrc(golden / "deepict/inputs/region_mask_corner.mrc.gz")
    op = CompatSegmentOp(
        str(golden / f"deepict/models/{model}.pth"),
        *deepict_statistics(volume),
        shape=volume.shape,
        mask_shape=None if mask is None else mask.shape,
        class_index=class_index,
    )
    scores = run(op, compat_grid(volume.shape, blocks, op), volume, mask, every=every)
    computed = ~np.isnan(scores)
    assert computed.mean() > 0.1
    assert np.abs(scores - reference)[computed].max() <= 1e-5
    never = reference == NEVER_PREDICTED
    assert np.array_equal((scores == NEVER_PREDICTED)[computed], never[computed])
    assert never.any() == name.endswith(("crop", "mask"))


@pytest.mark.parametrize("case", ["", "_corner", "_crop", "_region"])
def test_the_predicted_boxes_are_those_of_deepict(golden, tomogram, case):
    expected = json.loads((golden / f"deepict/prediction_partition_golden{case}.json").read_text())
    shape = (95, 150, 138) if case == "_crop" else tomogram.shape
    tiling, whole = CompatTiling(shape), Box.whole(shape)
    indices = list(tiling.indices_in(whole))
    if case in {"_corner", "_region"}:
        name = "region_mask_corner" if case == "_corner" else "region_mask"
        mask = read_mrc(golden / f"deepict/inputs/{name}.mrc.gz")
        indices = [index for index in indices if tiling.is_wanted(mask, whole, index)]
    # DeePiCt names a box by its centre in the padded volume
    names = {f"subtomo_{np.array(index) * 40 + 20 + 12}" for index in indices}
    assert names == set(expected)
    assert len(names) == len(expected)


def test_statistics_are_those_of_deepict_to_the_last_bit(tomogram):
    # oracle: np.mean and np.std of NumPy 1.23.5 on this volume
    mean, std = deepict_statistics(tomogram)
    assert (np.float32(mean), np.float32(std)) == tuple(
        np.array([0x4218E8D4, 0x409AFA31], dtype="u4").view("f4")
    )


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "float16"])
def test_statistics_do_not_depend_on_how_the_volume_is_read(dtype, monkeypatch):
    volume = np.random.default_rng(0).normal(100, 20, (30, 41, 53)).astype(dtype)
    whole = deepict_statistics(volume)
    monkeypatch.setattr("deepict_dask.segmentation.deepict_statistics.SLAB_BYTES", 9000)
    assert statistics_of(ArrayReader(volume)) == whole
    exact = volume.astype("float64")
    assert whole == pytest.approx((exact.mean(), exact.std()), rel=1e-5)


# ---------------------------------------------------------------- a second oracle: plain NumPy


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A network so small that many volumes can be predicted."""
    torch.manual_seed(3)
    network = UNet3D(UNet3DSettings(1, 1, 1, batch_norm=False)).eval()
    network.out_conv.weight.data *= 5
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, network, class_names=["a"], voxel_spacing_angstrom=None)
    return str(path), network


def by_definition(network, volume, mask, mean, std, box, overlap):
    """Pad with np.pad, cut, predict, paste: from the description of DeePiCt, one box at a time."""
    inner = box - 2 * overlap
    small = tuple(np.minimum(volume.shape, mask.shape))
    out = np.full(volume.shape, NEVER_PREDICTED, dtype="float32")
    widths = [(overlap, n % inner + overlap) for n in small]
    crop = tuple(slice(n) for n in small)
    padded, padded_mask = (np.pad(a[crop], widths, mode="reflect") for a in (volume, mask))
    counts = [(n + n % inner) // inner for n in small]
    for index in itertools.product(*map(range, counts)):
        cut = tuple(slice(i * inner, i * inner + box) for i in index)
        if padded_mask[cut].max() <= 0:
            continue
        patch = ((padded[cut] - np.float32(mean)) / np.float32(std)).astype("float32")
        with torch.inference_mode():
            scores = network(torch.from_numpy(patch)[None, None])[0, 0].sigmoid().numpy()
        target = tuple(slice(i * inner, min(n, (i + 1) * inner))
                       for i, n in zip(index, small, strict=True))  # fmt: skip
        inside = tuple(slice(overlap, overlap + s.stop - s.start) for s in target)
        out[target] = scores[inside]
    return out


@st.composite
def cases(draw):
    overlap = draw(st.integers(1, 4))
    inner = 2 * draw(st.integers(2, 6))
    shape = tuple(draw(st.integers(inner // 2 + 1, 3 * inner)) for _ in range(3))
    mask_shape = tuple(max(inner // 2 + 1, n + draw(st.integers(-4, 4))) for n in shape)
    chunk = tuple(inner * draw(st.integers(1, 3)) for _ in range(3))
    return overlap, inner, shape, mask_shape, chunk, draw(st.integers(0, 99))


@given(cases())
def test_any_blocks_give_what_the_description_gives(tiny_model, case):
    overlap, inner, shape, mask_shape, chunk, seed = case
    box = inner + 2 * overlap
    path, network = tiny_model
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=shape).astype("float32")
    mask = (rng.random(mask_shape) > 0.995).astype("int8")
    op = CompatSegmentOp(path, 0.1, 1.1, shape, mask_shape, 0, box=box, overlap=overlap)
    scores = run(op, compat_grid(shape, chunk, op), volume, mask)
    expected = by_definition(network, volume, mask, 0.1, 1.1, box, overlap)
    assert np.abs(scores - expected).max() <= 1e-5
    assert np.array_equal(scores == NEVER_PREDICTED, expected == NEVER_PREDICTED)


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 90))
def test_reflection_is_numpys_however_often_it_repeats(size, before, after):
    expected = np.pad(np.arange(size), (before, after), mode="reflect")
    assert np.array_equal(reflected(-before, size + after, size), expected)


# ---------------------------------------------------------------- refusals and edges


def test_the_halo_follows_from_box_and_overlap():
    assert CompatTiling((64, 64, 64)).reach == 13
    assert CompatTiling((64, 64, 64), box=64, overlap=20).reach == 21


def test_a_remainder_below_half_a_cube_is_never_predicted():
    assert CompatTiling((80 + 19, 80 + 20, 39)).covered_shape == (80, 100, 39)


def test_a_volume_in_which_deepict_predicts_nothing_is_refused():
    with pytest.raises(ShapeMismatchError, match=r"axis y has 19 voxels.*leave out --compat"):
        CompatTiling((100, 19, 100))


def test_blocks_that_cut_cubes_apart_are_refused(tiny_model):
    op = CompatSegmentOp(tiny_model[0], 0.0, 1.0, (100, 100, 100))
    grid = Grid((100, 100, 100), (64, 64, 64), op.halo)
    with pytest.raises(ShapeMismatchError, match="multiple of 40"):
        op.apply(grid[0], np.zeros(grid[0].read.shape, "float32"))


def test_an_empty_region_mask_predicts_nothing(tiny_model):
    volume = np.zeros((50, 50, 50), "float32")
    op = CompatSegmentOp(tiny_model[0], 0.0, 1.0, (50, 50, 50), (50, 50, 50), 0)
    scores = run(op, compat_grid((50, 50, 50), (40, 40, 40), op), volume, np.zeros_like(volume))
    assert (scores == NEVER_PREDICTED).all()


def test_all_classes_are_returned_with_their_axis(golden, tomogram):
    volume = tomogram[:40, :40, :40]
    path = str(golden / "deepict/models/rand_D3_IF8_BN_2lab.pth")
    block = Grid(volume.shape, volume.shape)[0]
    both = CompatSegmentOp(path, 38.0, 5.0, volume.shape).apply(block, volume)
    shell = CompatSegmentOp(path, 38.0, 5.0, volume.shape, class_index=1).apply(block, volume)
    assert both.shape == (2, 40, 40, 40)
    assert np.array_equal(both[1], shell)


def test_never_predicted_is_torchs_sigmoid_of_minus_ten():
    assert torch.sigmoid(torch.tensor(-10.0)).numpy() == NEVER_PREDICTED


def test_a_fitted_volume_is_cropped_or_filled_with_zeros():
    reader = FittedReader(ArrayReader(np.ones((3, 6, 4), "int8")), (4, 4, 4))
    assert reader.header.shape == (4, 4, 4)
    whole = reader.read(Box.whole((4, 4, 4)))
    assert whole[:3].all()
    assert not whole[3].any()
    assert not reader.read(Box((3, 0, 0), (4, 4, 4))).any()
