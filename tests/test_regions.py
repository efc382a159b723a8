"""Several regions at once: picks, columns and distances are those of the whole volume."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from region_scenes import (
    KINDS,
    SPACING,
    VOXEL_NM,
    points_at,
    region_mask,
    smooth_noise,
    store,
    whole_distance,
)
from skimage.measure import label as skimage_label

from deepict_dask.config import ContactSettings, PickSettings
from deepict_dask.core.errors import ShapeMismatchError, SpacingError, VoxelValueError
from deepict_dask.core.geometry import Box
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session

NAMES = ("er", "mito-1", "cell.2")


def smooth_scores(shape, seed):
    return (smooth_noise(shape, seed, 1.2) / 2 + 0.4).astype("float32")


def passes(contact, mask, coordinates, centre):
    """Say whether a cluster has a contact, from its definition on the whole volume."""
    if contact.mode == "contact":
        return mask[tuple(coordinates.T)].any()
    if contact.distance is not None:
        return whole_distance(mask, "chessboard")[centre] <= contact.distance
    return whole_distance(mask)[centre] * VOXEL_NM <= contact.distance_nm


def expected_clusters(score, masks, contacts, limit_nm):
    """Return the cluster table and the segmentation of the whole volume."""
    chosen = score > 0.5
    for contact in contacts:
        if contact.mode == "intersection":
            chosen &= masks[contact.region] != 0
    labels = skimage_label(chosen, connectivity=3)
    rows, kept = [], np.zeros(score.shape, "uint8")
    distances = {name: whole_distance(mask) * VOXEL_NM for name, mask in masks.items()}
    for number in range(1, labels.max() + 1):
        coordinates = np.argwhere(labels == number)
        centroid = coordinates.sum(axis=0) / len(coordinates)
        centre = tuple(np.rint(centroid).astype(int))
        if not all(
            passes(contact, masks[contact.region], coordinates, centre)
            for contact in contacts
            if contact.mode != "intersection"
        ):
            continue
        kept[tuple(coordinates.T)] = 1
        row = {"n_voxels": len(coordinates)} | dict(zip("zyx", centroid, strict=True))
        for name, mask in masks.items():
            row[f"n_in_{name}"] = np.count_nonzero(mask[tuple(coordinates.T)])
            far = distances[name][centre] > limit_nm
            row[f"distance_{name}_nm"] = np.nan if far else distances[name][centre]
        rows.append(row)
    return rows, kept


@st.composite
def contacts_with(draw, names):
    contacts = []
    for name in names:
        kind = draw(st.sampled_from(["none", "intersection", "contact", "voxels", "nm"]))
        if kind in ("intersection", "contact"):
            contacts.append(ContactSettings(region=name, mode=kind))
        elif kind != "none":
            far = draw(st.integers(0, 12))
            given_as = {"distance": far} if kind == "voxels" else {"distance_nm": 1.3 * far}
            contacts.append(ContactSettings(region=name, mode="colocalization", **given_as))
    return tuple(contacts)


@settings(max_examples=20)
@given(data=st.data())
def test_picks_and_columns_equal_the_definition_on_the_whole_volume(any_workers, tmp_path, data):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    shape = data.draw(st.tuples(*[st.integers(8, 40)] * 3), "shape")
    chunks = data.draw(st.tuples(*[st.integers(7, 48)] * 3), "chunks")
    names = NAMES[: data.draw(st.integers(1, 3), "regions")]
    kinds = [data.draw(st.sampled_from(KINDS), name) for name in names]
    contacts = data.draw(contacts_with(names), "contacts")
    limit = data.draw(st.sampled_from([2.0, 9.0, 1000.0]), "limit")
    seed = data.draw(st.integers(0, 100), "seed")
    score = smooth_scores(shape, seed)
    masks = {
        name: region_mask(shape, kind, seed + number)
        for number, (name, kind) in enumerate(zip(names, kinds, strict=True))
    }
    rows, kept = expected_clusters(score, masks, contacts, limit)
    workers = any_workers[data.draw(st.integers(1, 3), "workers")]
    pick_particles(
        Session(workers, chunks=chunks),
        store(tmp_path / "s.zarr", score),
        tmp_path / "p",
        PickSettings(contacts=contacts, distance_limit_nm=limit),
        regions={name: store(tmp_path / f"{name}.zarr", mask) for name, mask in masks.items()},
    )
    table = pd.read_parquet(tmp_path / "p/clusters.parquet")
    assert len(table) == len(rows)
    for column in ("n_voxels", *"zyx", *(f"n_in_{name}" for name in names)):
        np.testing.assert_allclose(table[column], [row[column] for row in rows], rtol=1e-12)
    for name in names:
        column = f"distance_{name}_nm"
        assert table[column].dtype == np.float64
        np.testing.assert_allclose(table[column], [row[column] for row in rows], atol=1e-4)
    found = open_volume(tmp_path / "p/segmentation.zarr").read(Box.whole(shape))
    np.testing.assert_array_equal(found, kept)


def pick(workers, tmp_path, score, masks, chunks=(8, 8, 8), spacing=SPACING, **wishes):
    """Pick with masks by name; return the cluster table."""
    paths = {name: store(tmp_path / f"{name}.zarr", mask, spacing) for name, mask in masks.items()}
    target = tmp_path / "p"
    pick_particles(
        Session(workers, chunks=chunks, overwrite=True),
        store(tmp_path / "s.zarr", score, spacing),
        target,
        PickSettings(**wishes),
        regions=paths,
        tomogram_name="t",
    )
    return pd.read_parquet(target / "clusters.parquet")


def test_files_with_three_regions_do_not_depend_on_the_chunks(any_workers, tmp_path):
    shape = (40, 50, 60)
    masks = dict(zip(NAMES, (region_mask(shape, k, 5) for k in KINDS[:3]), strict=True))
    wishes = {
        "contacts": (ContactSettings(region="er", mode="colocalization", distance_nm=9.0),),
        "distance_limit_nm": 20.0,
    }
    made = []
    for n, chunks in ((1, shape), (2, (16, 16, 16)), (3, (9, 40, 17))):
        pick(any_workers[n], tmp_path, smooth_scores(shape, 2), masks, chunks, **wishes)
        names = ("clusters.parquet", "picks.csv", "picks.star", "motl.csv")
        made.append([(tmp_path / "p" / name).read_bytes() for name in names])
    assert made[0] == made[1] == made[2]


def test_picks_keep_the_distances_in_lists_that_are_read_again(two_workers, tmp_path):
    score = points_at((8, 8, 24), (4, 4, 2), (4, 4, 20))
    near = region_mask(score.shape, "empty", 0)
    near[4, 4, 5] = 1
    pick(two_workers, tmp_path, score, {"er": near}, distance_limit_nm=10.0)
    frame = {"voxel_spacing_angstrom": SPACING, "tomogram_shape": score.shape}
    for name in ("picks.csv", "picks.star"):
        picks = read_picks(tmp_path / "p" / name, **frame).sort_values("x")
        distances = picks["distance_er_nm"].astype(float).to_numpy()
        np.testing.assert_allclose(distances, [3 * VOXEL_NM, np.nan])


def test_a_region_across_a_chunk_face_is_one_voxel_away(two_workers, tmp_path):
    score = points_at((8, 8, 16), (4, 4, 7))
    mask = region_mask(score.shape, "empty", 0)
    mask[4, 4, 8] = 1
    table = pick(two_workers, tmp_path, score, {"er": mask})
    np.testing.assert_allclose(table["distance_er_nm"], [VOXEL_NM])


def test_the_limit_itself_is_included(two_workers, tmp_path):
    score = points_at((8, 8, 40), (4, 4, 7))
    mask = region_mask(score.shape, "empty", 0)
    mask[4, 4, 27] = 1
    for limit, within in ((20 * VOXEL_NM, True), (20 * VOXEL_NM - 0.01, False)):
        table = pick(two_workers, tmp_path, score, {"er": mask}, distance_limit_nm=limit)
        assert table["distance_er_nm"].notna().tolist() == [within]


def test_the_centroid_counts_even_where_it_is_in_another_chunk_than_its_voxels(
    two_workers, tmp_path
):
    score = np.zeros((8, 24, 24), "float32")
    score[4, [1, 22], 1:23], score[4, 1:23, 22] = 1, 1  # a U about a chunk that it does not enter
    mask = region_mask(score.shape, "empty", 0)
    mask[4, 12, 9] = 1
    coordinates = np.argwhere(score)
    centre = np.rint(coordinates.mean(axis=0)).astype(int)
    assert score[4, 8:16, 8:16].sum() == 0
    assert (centre // 8).tolist() == [0, 1, 1]
    expected = np.linalg.norm(centre - [4, 12, 9]) * VOXEL_NM
    table = pick(two_workers, tmp_path, score, {"er": mask})
    np.testing.assert_allclose(table["distance_er_nm"], [expected])


def test_contacts_with_two_regions_must_both_hold(two_workers, tmp_path):
    places = [(4, 4, x) for x in (2, 10, 18, 26)]
    score = points_at((8, 8, 32), *places)
    first, second = (region_mask(score.shape, "empty", 0) for _ in range(2))
    first[:, :, 8:24], second[:, :, 16:32] = 1, 1
    masks = {"er": first, "mito": second}
    for one, other in itertools.product(("intersection", "contact", "colocalization"), repeat=2):
        contacts = tuple(
            ContactSettings(
                region=name, mode=mode, distance=0 if mode == "colocalization" else None
            )
            for name, mode in (("er", one), ("mito", other))
        )
        table = pick(two_workers, tmp_path, score, masks, contacts=contacts)
        assert table["x"].tolist() == [18.0]
        assert table[["n_in_er", "n_in_mito"]].to_numpy().tolist() == [[1, 1]]
        assert table[["distance_er_nm", "distance_mito_nm"]].to_numpy().tolist() == [[0, 0]]


def test_only_the_distances_that_are_asked_for_are_columns(two_workers, tmp_path):
    score = points_at((8, 8, 8), (4, 4, 4))
    masks = {name: np.ones(score.shape, "uint8") for name in ("er", "mito")}
    for wanted in ((), ("mito",), ("mito", "nucleus"), None):
        table = pick(two_workers, tmp_path, score, masks, distances=wanted)
        found = [name for name in table.columns if name.startswith("distance")]
        names = ["er", "mito"] if wanted is None else list({"mito"} & set(wanted))
        assert found == [f"distance_{name}_nm" for name in names]
        assert {"n_in_er", "n_in_mito"} <= set(table.columns)


def test_no_clusters_still_have_all_columns(two_workers, tmp_path):
    score = np.zeros((8, 8, 20), "float32")
    table = pick(two_workers, tmp_path, score, {"er": np.ones(score.shape, "uint8")})
    assert len(table) == 0
    assert table.dtypes[["n_in_er", "distance_er_nm"]].tolist() == [np.int64, np.float64]
    assert (tmp_path / "p/picks.csv").read_text() == "score,x,y,z,n_voxels,label,distance_er_nm\n"


@pytest.mark.parametrize(
    ("contact", "says"),
    [
        (None, "nothing has a distance to it"),
        (ContactSettings(region="er", mode="intersection"), "it keeps no cluster"),
        (ContactSettings(region="er", mode="contact"), "it keeps no cluster"),
        (ContactSettings(region="er", mode="colocalization", distance_nm=5), "it keeps no cluster"),
    ],
)
def test_an_empty_region_restricts_by_its_contact_and_is_named(
    two_workers, tmp_path, caplog, contact, says
):
    score = points_at((8, 8, 20), (4, 4, 4))
    masks = {"er": np.zeros(score.shape, "uint8"), "mito": np.ones(score.shape, "uint8")}
    contacts = () if contact is None else (contact,)
    table = pick(two_workers, tmp_path, score, masks, contacts=contacts)
    assert len(table) == (contact is None)
    assert table["distance_er_nm"].isna().all()
    assert "er.zarr: the region mask is empty: " + says in caplog.text
    assert "mito.zarr" not in caplog.text


def test_a_contact_without_a_mask_does_not_restrict_and_is_named(two_workers, tmp_path, caplog):
    score = points_at((8, 8, 20), (4, 4, 4))
    contacts = (ContactSettings(region="nucleus", mode="contact"),)
    table = pick(two_workers, tmp_path, score, {}, contacts=contacts)
    assert len(table) == 1
    assert "no mask of nucleus" in caplog.text


def test_without_a_voxel_spacing_distances_are_in_voxels(two_workers, tmp_path, caplog):
    score = points_at((8, 8, 40), (4, 4, 4), (4, 4, 30))
    mask = region_mask(score.shape, "empty", 0)
    mask[4, 4, 10] = 1
    wishes = {"spacing": None, "compat": "deepict", "min_size": 0, "distance_limit_nm": 6.0}
    table = pick(two_workers, tmp_path, score, {"er": mask}, **wishes)
    np.testing.assert_array_equal(table["distance_er_voxels"], [6.0, np.nan])
    assert "distances to regions are in voxels, up to 6" in caplog.text
    contacts = (ContactSettings(region="er", mode="colocalization", distance_nm=5),)
    with pytest.raises(SpacingError, match="within 5 nm"):
        pick(two_workers, tmp_path, score, {"er": mask}, contacts=contacts, **wishes)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (np.full((8, 8, 20), np.nan, "float32"), VoxelValueError, "er.zarr: expected finite"),
        (np.full((8, 8, 20), np.inf, "float32"), VoxelValueError, "er.zarr: expected finite"),
        (np.full((8, 8, 20), -1.0, "float32"), VoxelValueError, "er.zarr: expected a region mask"),
        (np.ones((8, 8, 19), "uint8"), ShapeMismatchError, r"er.zarr: .* found \(8, 8, 19\)"),
    ],
)
def test_one_bad_mask_of_two_is_named(two_workers, tmp_path, bad, error, says):
    score = points_at((8, 8, 20), (4, 4, 4))
    with pytest.raises(error, match=says):
        pick(two_workers, tmp_path, score, {"mito": np.ones(score.shape, "uint8"), "er": bad})
    assert not (tmp_path / "p").exists()
