"""Labels and cluster tables must not depend on the chunking or the number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from skimage.measure import label as skimage_label
from skimage.measure import regionprops_table

from deepict_dask.core.geometry import Grid
from deepict_dask.core.tables import SCORE_UNIT
from deepict_dask.engine import SpillFolder, reduce_chunks
from deepict_dask.engine.reduce import tree_nodes
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.stacked import StackedMasks
from deepict_dask.labelling import LabelReduction, RelabelOp, SelectSettings
from deepict_dask.labelling.merge import KeepRule
from deepict_dask.labelling.op import sorted_rows

RANK = {6: 1, 18: 2, 26: 3}


class MemoryReader:
    """A volume in memory."""

    path = "memory"

    def __init__(self, array):
        self.array = array

    def read(self, box):
        return self.array[box.slices].copy()


class KnownNames:
    """What became of labels, as the spill folder of a finished reduction knows it."""

    def __init__(self, spill, counts, kept):
        self.spill, self.counts, self.kept = spill, counts, kept

    def renames_above(self, block):
        loaded = (self.spill.load(n, "renames") for n in self.spill.ancestors(block, self.counts))
        return [pairs for pairs in loaded if pairs is not None]

    def kept_names(self):
        return self.kept


def label_in_chunks(
    workers, score, chunks, connectivity, tmp_path, *, rule=None, regions=(), select=None
):
    """Run both passes; return the cluster rows and the label map."""
    grid = Grid(score.shape, chunks)
    select = select or SelectSettings(threshold=0.5)
    rule = rule or KeepRule()
    reduction = LabelReduction(score.shape, select, connectivity, rule, n_regions=len(regions))
    sources = [MemoryReader(score)]
    if regions:
        sources.append(StackedMasks(tuple(ArrayReader(region) for region in regions)))
    spill = SpillFolder(str(tmp_path))
    for old in tmp_path.glob("*.npy"):
        old.unlink()
    root = reduce_chunks(workers, reduction, sources, grid, spill=spill)
    kept = spill.load_all("kept")
    rows = sorted_rows(np.concatenate(kept)) if kept else root.kept
    names = KnownNames(spill, grid.counts, rows["first_voxel"])
    relabel = RelabelOp(score.shape, select, names, connectivity, as_label_map=True)
    result = np.zeros(score.shape, np.int64)
    for block in grid:
        windows = [source.read(block.read) for source in sources]
        result[block.write.slices] = block.crop(relabel.apply(block, *windows))
    return rows, result


def assert_rows_describe(rows, labels, score):
    """Compare a cluster table with skimage's properties of the whole volume."""
    props = regionprops_table(labels, score, properties=("area", "bbox", "centroid"))
    assert rows["n_voxels"].tolist() == props["area"].astype(int).tolist()
    for axis, name in enumerate("zyx"):
        centroid = rows[f"sum_{name}"] / rows["n_voxels"]
        np.testing.assert_allclose(centroid, props[f"centroid-{axis}"], rtol=1e-12)
        assert rows[f"{name}_min"].tolist() == props[f"bbox-{axis}"].tolist()
        assert (rows[f"{name}_max"] + 1).tolist() == props[f"bbox-{axis + 3}"].tolist()
    for row, number in zip(rows, range(1, labels.max() + 1), strict=True):
        inside = score[labels == number].astype(float)
        assert row["score_max"] == inside.max()
        assert row["score_sum"] == np.rint(inside / SCORE_UNIT).sum()


def noise(shape, density, seed):
    """Scores above 0.5 in about ``density`` of the voxels."""
    rng = np.random.default_rng(seed)
    return (rng.random(shape) < density).astype("float32") * rng.uniform(0.6, 1, shape).astype(
        "float32"
    )


@st.composite
def problems(draw):
    shape = draw(st.tuples(*[st.integers(20, 60)] * 3))
    chunks = draw(st.tuples(*[st.integers(5, 64)] * 3))
    density = draw(st.sampled_from([0.02, 0.1, 0.3, 0.6, 0.9]))
    return noise(shape, density, draw(st.integers(0, 2**31))), chunks


@given(problems(), st.sampled_from([6, 18, 26]), st.integers(1, 3))
def test_labels_do_not_depend_on_the_chunking(any_workers, tmp_path, problem, connectivity, n):
    score, chunks = problem
    expected = skimage_label(score > 0.5, connectivity=RANK[connectivity])
    rows, labels = label_in_chunks(any_workers[n], score, chunks, connectivity, tmp_path)
    np.testing.assert_array_equal(labels, expected)
    assert len(rows) == expected.max()


@pytest.mark.parametrize("chunks", [(150, 150, 150), (40, 50, 64), (33, 150, 17)])
def test_tables_of_a_large_volume_equal_skimage(three_workers, tmp_path, chunks):
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.random.default_rng(3).standard_normal((150, 120, 141)), 2)
    score = (smooth / np.abs(smooth).max() + 0.4).astype("float32")
    expected = skimage_label(score > 0.5, connectivity=3)
    rows, labels = label_in_chunks(three_workers, score, chunks, 26, tmp_path)
    np.testing.assert_array_equal(labels, expected)
    assert_rows_describe(rows, expected, score)


@pytest.mark.parametrize(("connectivity", "n_clusters"), [(6, 2), (18, 2), (26, 1)])
@pytest.mark.parametrize("flip", [(1, 1, 1), (1, -1, 1), (1, 1, -1), (1, -1, -1)])
def test_clusters_touching_only_at_a_chunk_corner(
    two_workers, tmp_path, connectivity, n_clusters, flip
):
    score = np.zeros((8, 8, 8), "float32")
    score[2:4, 2:4, 2:4] = 1
    score[4:6, 4:6, 4:6] = 1
    score = np.ascontiguousarray(score[:: flip[0], :: flip[1], :: flip[2]])
    rows, _ = label_in_chunks(two_workers, score, (4, 4, 4), connectivity, tmp_path)
    assert len(rows) == n_clusters


@pytest.mark.parametrize(("connectivity", "n_clusters"), [(6, 2), (18, 1), (26, 1)])
def test_clusters_touching_only_at_a_chunk_edge(two_workers, tmp_path, connectivity, n_clusters):
    score = np.zeros((4, 8, 8), "float32")
    score[:, 2:4, 2:4] = 1
    score[:, 4:6, 4:6] = 1
    rows, _ = label_in_chunks(two_workers, score, (4, 4, 4), connectivity, tmp_path)
    assert len(rows) == n_clusters


def winding(shape):
    """One thread of voxels that runs through every row of every second plane."""
    score = np.zeros(shape, "float32")
    score[::2, ::2, :] = 1
    for y in range(1, shape[1] - 1, 2):
        score[::2, y, -1 if (y // 2) % 2 == 0 else 0] = 1
    last_row_end = -1 if ((shape[1] - 1) // 2) % 2 == 0 else 0
    for z in range(1, shape[0] - 1, 2):
        if (z // 2) % 2 == 0:
            score[z, (shape[1] - 1) // 2 * 2, last_row_end] = 1
        else:
            score[z, 0, 0] = 1
    return score


@pytest.mark.parametrize("chunks", [(4, 4, 4), (5, 7, 3), (21, 3, 21)])
def test_a_cluster_that_winds_through_every_chunk_is_one(two_workers, tmp_path, chunks):
    score = winding((21, 21, 21))
    assert skimage_label(score > 0.5, connectivity=1).max() == 1
    rows, labels = label_in_chunks(two_workers, score, chunks, 6, tmp_path)
    assert rows["n_voxels"].tolist() == [np.count_nonzero(score)]
    assert set(np.unique(labels)) == {0, 1}


def test_one_voxel_on_a_chunk_corner_is_one_cluster(two_workers, tmp_path):
    score = np.zeros((8, 8, 8), "float32")
    score[4, 4, 4] = 1
    rows, labels = label_in_chunks(two_workers, score, (4, 4, 4), 26, tmp_path)
    assert rows["n_voxels"].tolist() == [1]
    assert np.argwhere(labels).tolist() == [[4, 4, 4]]


def test_a_full_volume_is_one_cluster(three_workers, tmp_path):
    rows, labels = label_in_chunks(
        three_workers, np.ones((30, 31, 32), "float32"), (8, 9, 10), 6, tmp_path
    )
    assert rows["n_voxels"].tolist() == [30 * 31 * 32]
    assert (labels == 1).all()


def test_an_empty_volume_has_no_clusters(three_workers, tmp_path):
    rows, labels = label_in_chunks(
        three_workers, np.zeros((30, 31, 32), "float32"), (8, 9, 10), 26, tmp_path
    )
    assert len(rows) == 0
    assert not labels.any()


@given(problems(), st.integers(1, 5), st.integers(5, 40))
def test_size_limits_apply_to_merged_clusters(two_workers, tmp_path, problem, low, high):
    score, chunks = problem
    whole = skimage_label(score > 0.5, connectivity=3)
    sizes = np.bincount(whole.ravel())[1:]
    expected = sizes[(sizes >= low) & (sizes <= high)]
    rule = KeepRule(min_size=low, max_size=high)
    rows, labels = label_in_chunks(two_workers, score, chunks, 26, tmp_path, rule=rule)
    assert rows["n_voxels"].tolist() == expected.tolist()
    assert np.bincount(labels.ravel())[1:].tolist() == expected.tolist()


def test_a_cluster_is_kept_by_contact_though_only_one_chunk_of_it_touches(two_workers, tmp_path):
    score = np.zeros((4, 4, 40), "float32")
    score[1, 1, 2:38] = 1
    score[3, 3, 10:12] = 1
    region = np.zeros(score.shape, "uint8")
    region[1, 1, 37] = 5
    rule = KeepRule(must_touch=(0,))
    rows, _ = label_in_chunks(
        two_workers, score, (4, 4, 8), 26, tmp_path, rule=rule, regions=[region]
    )
    assert rows["n_voxels"].tolist() == [36]
    assert rows["n_in_region"].tolist() == [[1]]


@given(problems(), st.sampled_from([6, 26]))
@example((noise((20, 20, 20), 0.3, 0), (7, 7, 7)), 26)
def test_without_spilling_the_root_holds_the_same_rows(
    two_workers, tmp_path, problem, connectivity
):
    score, chunks = problem
    reduction = LabelReduction(score.shape, SelectSettings(threshold=0.5), connectivity)
    root = reduce_chunks(two_workers, reduction, [MemoryReader(score)], Grid(score.shape, chunks))
    rows, _ = label_in_chunks(two_workers, score, chunks, connectivity, tmp_path)
    np.testing.assert_array_equal(sorted_rows(root.kept), rows)


def test_the_tree_holds_every_block_once_and_every_child_before_its_parent():
    seen = set()
    for node, children in tree_nodes((3, 4, 5)):
        assert all(child in seen for child in children)
        assert node not in seen
        seen.add(node)
    assert sum(node.level == 0 for node in seen) == 60
    assert max(node.level for node in seen) == 3
