"""Tables and lists written batch by batch have the bytes of those written at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepict_dask.core.errors import PicksFormatError
from deepict_dask.core.tables import cluster_dtype
from deepict_dask.engine.runs import RowFile
from deepict_dask.io.parquet import write_parquet
from deepict_dask.io.picks import FORMATS, write_pick_batches
from deepict_dask.io.picks_table import TomogramFrame, make_picks
from deepict_dask.jobs.picking.clusters import ClusterTables, gather_clusters, store_distances
from deepict_dask.labelling import op as labelling_op
from deepict_dask.labelling.op import final_labels
from deepict_dask.particles import cluster_table, picks_table

FRAME = TomogramFrame(voxel_spacing_angstrom=13.48, shape=(9, 50, 60), name="TS 1")
REGIONS = ("er", "cytosol")


def cluster_rows(n, seed):
    """Clusters of which many have the same score; in raster order."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, cluster_dtype(len(REGIONS)))
    rows["first_voxel"] = np.sort(rng.choice(10 * n + 1, n, replace=False))
    rows["n_voxels"] = rng.integers(1, 5, n)
    for name in ("sum_z", "sum_y", "sum_x"):
        rows[name] = rng.integers(0, 40, n) * rng.integers(1, 3, n)
    rows["score_sum"] = rows["n_voxels"] * rng.integers(1, 4, n) * 2**22
    rows["n_in_region"] = rng.integers(0, 3, (n, len(REGIONS)))
    return rows


def spilled(folder, rows, n_files, seed):
    """Leave clusters in files as the nodes of a tree do."""
    owner = np.random.default_rng(seed).integers(0, n_files, len(rows))
    for i in range(n_files):
        np.save(folder / f"L0_{i}.kept.npy", rows[owner == i])
    return sorted(folder.glob("L0_*.kept.npy"))


def distances_of(rows):
    """Distances to two regions, NaN where they are far."""
    first = rows["first_voxel"] / 7.0
    return np.stack([first, np.where(rows["first_voxel"] % 3 == 0, np.nan, 0.5)])


def columns_of(distances):
    return {f"distance_{name}_nm": d for name, d in zip(REGIONS, distances, strict=True)}


@given(
    st.integers(0, 60), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9)
)
@example(0, 1, 1, 1, 0)
def test_files_do_not_depend_on_the_batches(tmp_path, n, n_files, gathered, batch, seed):
    rows = cluster_rows(n, seed)
    keep = None if seed % 2 else (lambda some: some["first_voxel"] % 4 > 0)
    files = spilled(tmp_path, rows, n_files, seed)
    found = gather_clusters(tmp_path, files, len(REGIONS), keep, batch_rows=gathered)
    kept = rows if keep is None else rows[keep(rows)]
    assert (found.n_found, len(found)) == (n, len(kept))
    np.testing.assert_array_equal(found.rows[:], kept)
    np.testing.assert_array_equal(found.names[:], kept["first_voxel"])
    assert not any(path.exists() for path in files)
    distances = store_distances(tmp_path / "distances", found, distances_of, len(REGIONS))
    name = "a, b" if seed % 3 else None
    tables = ClusterTables(
        found, distances, tmp_path, 2.0**-24, REGIONS, columns_of, name, batch_rows=batch
    )
    whole = cluster_table(
        kept, score_unit=2.0**-24, regions=REGIONS, columns=columns_of(distances_of(kept))
    )
    whole.to_parquet(tmp_path / "whole.parquet", index=False)
    assert write_parquet(tables.cluster_tables(), tmp_path / "parts.parquet") == len(kept)
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    picks = picks_table(whole, name)
    for kind in ("csv", "motl", "motl-deepict", "star"):
        batches = tables.picks_by_falling_score() if kind == "csv" else tables.picks()
        write_pick_batches(batches, tmp_path / "list", FRAME, file_format=kind)
        assert (tmp_path / "list").read_bytes() == FORMATS[kind].dump(picks, FRAME)


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 60))
def test_row_groups_do_not_depend_on_the_batches(tmp_path, n, group_rows, batch):
    rng = np.random.default_rng(n)
    scores = np.where(rng.random(n) < 0.2, np.nan, rng.random(n))
    whole = pd.DataFrame({"label": np.arange(n), "score": scores})
    whole.to_parquet(tmp_path / "whole", index=False, row_group_size=group_rows)
    parts = (whole[i : i + batch] for i in range(0, max(n, 1), batch))
    assert write_parquet(parts, tmp_path / "parts", group_rows=group_rows) == n
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_list_that_begins_with_its_length_is_not_written_in_batches(tmp_path):
    with pytest.raises(PicksFormatError, match="from one table"):
        write_pick_batches([make_picks([[1, 2, 3]])], tmp_path / "a.em", FRAME)
    assert not (tmp_path / "a.em").exists()


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20), st.integers(0, 99))
def test_names_are_found_in_a_file_as_in_an_array(tmp_path, n_names, n_kept, piece, seed):
    rng = np.random.default_rng(seed)
    names = rng.choice(100, n_names, replace=False)
    kept = np.sort(rng.choice(100, n_kept, replace=False))
    np.save(tmp_path / "kept.npy", kept)
    expected = [kept.tolist().index(name) + 1 if name in kept else 0 for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling_op, "PIECE_VOXELS", piece)
        for known in (kept, RowFile.of_npy(tmp_path / "kept.npy")):
            assert final_labels(names, known).tolist() == expected
