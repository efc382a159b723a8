"""Are batches what the config asks for, and never a held-out voxel among them?"""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
from training_scenes import PATCH, SHAPE, config, folder, labels, numbered, replaced, truth, write

from deepict_dask.core.errors import PicksFormatError, SpacingError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine.content import fingerprint
from deepict_dask.io.volumes import create_volume
from deepict_dask.training.data import open_training_data
from deepict_dask.training.preview import counts_text, write_preview
from deepict_dask.training.voxels import read_mirrored

__all__ = ["folder"]


def original(data, images):
    """Return the numbers of the voxels of a batch."""
    tomogram = data.training[0].tomogram
    return np.rint(images * np.float32(tomogram.std) + np.float32(tomogram.mean)).astype(int)


def test_a_batch_holds_normalised_voxels_and_the_targets_at_their_place(folder):
    data = open_training_data(config(folder))
    flat = truth().reshape(2, -1)
    for step in range(5):
        images, targets = data.batch(step)
        assert images.shape == (4, 1, *PATCH)
        assert targets.shape == (4, 2, *PATCH)
        assert images.dtype == targets.dtype == np.float32
        where = original(data, images)[:, 0]
        assert np.array_equal(targets, np.moveaxis(flat[:, where], 0, 1))
    assert data.class_names == ("ribosome", "membrane")
    assert data.voxel_spacing_angstrom == pytest.approx(13.5)


def test_batches_are_the_same_from_zarr_and_from_packed_files(folder):
    plain = open_training_data(config(folder)).batch(0)
    text = (folder / "cells.csv").read_text()
    for name in ("a", "a_labels"):
        header = VolumeHeader(SHAPE, "float32" if name == "a" else "int8", 13.5)
        writer = create_volume(folder / f"{name}.zarr", header, chunks=(16, 16, 16))
        voxels = numbered() if name == "a" else labels()
        for block in Grid(SHAPE, (16, 16, 16)):
            writer.write(block.write, voxels[block.write.slices])
        writer.finish()
        text = replaced(text, f"{name}.mrc", f"{name}.zarr")
    with gzip.open(folder / "b.mrc.gz", "wb") as file:
        file.write((folder / "b.mrc").read_bytes())
    (folder / "cells.csv").write_text(replaced(text, "b.mrc", "b.mrc.gz"))
    for keep_bytes in (0, 1 << 20):
        other = open_training_data(config(folder), keep_bytes=keep_bytes).batch(0)
        assert all(np.array_equal(one, two) for one, two in zip(plain, other, strict=True))


def test_mean_and_deviation_are_those_of_the_whole_tomogram(folder):
    tomogram = open_training_data(config(folder)).training[0].tomogram
    assert tomogram.mean == pytest.approx(numbered().mean(dtype=np.float64))
    assert tomogram.std == pytest.approx(numbered().std(dtype=np.float64))


@pytest.mark.parametrize("sampling", ["balanced", "labelled", "uniform", "grid"])
def test_the_same_seed_and_step_make_the_same_bytes_in_another_process_too(folder, sampling):
    changes = {
        "patches": {"shape": PATCH, "sampling": sampling, "overlap": 2},
        "augment": {
            "gaussian_noise": 0.1, "tomogram_noise": 0.5, "rotation_degrees": 10, "elastic": 1,
        },
    }  # fmt: skip
    data = open_training_data(config(folder, **changes))
    again = pickle.loads(pickle.dumps(data))
    unkept = open_training_data(config(folder, **changes), keep_bytes=0)
    seen = []
    for step in (7, 0, 1):  # in any order
        batches = [one.batch(step) for one in (data, again, unkept)]
        assert len({b"".join(part.tobytes() for part in batch) for batch in batches}) == 1
        seen.append(batches[0][0].tobytes())
    other = open_training_data(config(folder, seed=1, **changes))
    assert len({*seen, other.batch(0)[0].tobytes()}) == 4


@pytest.mark.parametrize("sampling", ["balanced", "labelled", "uniform", "grid"])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_no_training_patch_sees_a_voxel_that_is_held_out(folder, sampling, axis):
    """Held-out voxels are a million: one of them in an interpolation would show."""
    voxels = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    place = [slice(None)] * 3
    number = "zyx".index(axis)
    border = SHAPE[number] - round(0.35 * SHAPE[number])
    place[number] = slice(border, None)
    voxels[tuple(place)] += 1e6
    for name in "ab":
        write(folder / f"{name}.mrc", voxels)
    data = open_training_data(
        config(
            folder,
            patches={"shape": PATCH, "sampling": sampling, "overlap": 2},
            validation={"fraction": 0.35, "axis": axis},
            augment={"rotation_degrees": 180, "elastic": 2, "tomogram_noise": 1.0},
        )
    )
    tomogram = data.training[0].tomogram
    held_out = (1e5 - tomogram.mean) / tomogram.std
    for step in range(10):  # beside a million all others are the same
        assert all(np.ptp(patch) < 1e-3 for patch in data.batch(step)[0])
    seen = [image for images, _ in data.validation_batches() for image in images]
    assert min(image.min() for image in seen) > held_out


def test_validation_patches_cover_what_is_held_out_once(folder):
    data = open_training_data(config(folder, validation={"fraction": 0.4, "axis": "y"}))
    batches = list(data.validation_batches())
    images = np.concatenate([images for images, _ in batches])
    assert len(images) == data.n_validation_patches == 2 * (2 * 2 * 3)
    where = original(data, images)
    seen = np.bincount(where[: len(where) // 2].ravel(), minlength=np.prod(SHAPE))
    assert np.array_equal(seen.reshape(SHAPE)[:, :24], np.zeros((16, 24, 24)))
    assert np.array_equal(seen.reshape(SHAPE)[:, 24:], np.ones((16, 16, 24)))
    again = np.concatenate([images for images, _ in data.validation_batches()])
    assert np.array_equal(images, again)


def test_some_of_the_validation_patches_are_always_the_same_ones(folder):
    data = open_training_data(config(folder, validation={"fraction": 0.4}))
    whole = np.concatenate([images for images, _ in data.validation_batches()])
    some = np.concatenate([images for images, _ in data.validation_batches(limit=6)])
    assert np.array_equal(some, whole[::4])


def test_validation_patches_are_mirrored_where_the_tomogram_ends(folder):
    data = open_training_data(
        config(folder, patches={"shape": (16, 32, 16)}, validation={"tomograms": ["b"]})
    )
    images = np.concatenate([images for images, _ in data.validation_batches()])
    padded = np.pad(numbered(), [(0, 0), (0, 24), (0, 8)], mode="reflect")
    wanted = [padded[:, y : y + 32, x : x + 16] for y in (0, 32) for x in (0, 16)]
    assert np.array_equal(original(data, images)[:, 0], np.array(wanted))


def test_held_out_tomograms_are_by_name_and_can_be_overridden(folder):
    settings = config(folder, validation={"tomograms": ["b"]})
    data = open_training_data(settings)
    assert {name: one["roles"] for name, one in data.inputs.items()} == {
        "a": ["training"],
        "b": ["validation"],
    }
    swapped = open_training_data(settings, tomograms=["b"], held_out=["a"])
    assert [part.tomogram.name for part in swapped.training] == ["b"]
    assert [part.tomogram.name for part in swapped.validation] == ["a"]
    everything = open_training_data(settings, held_out=[])
    assert len(everything.training) == 2
    assert list(everything.validation_batches()) == []


def test_inputs_name_every_file_with_its_hash(folder):
    found = open_training_data(config(folder)).inputs["a"]
    assert found["path"] == str(folder / "a.mrc")
    assert found["sha256"] == fingerprint(folder / "a.mrc")
    wanted = [{"path": str(folder / "a.csv"), "sha256": fingerprint(folder / "a.csv")}]
    assert found["classes"]["ribosome"] == wanted
    assert found["classes"]["membrane"][0]["path"] == str(folder / "a_labels.mrc")


def test_counts_are_those_of_the_whole_volumes(folder):
    table = open_training_data(config(folder, validation={"fraction": 0.4})).counts()
    row = table.set_index(["role", "tomogram", "class_name"]).loc
    ribosome, membrane = truth()
    first = row["training", "a", "ribosome"]
    assert first["particles"] == 2
    assert first["labelled_voxels"] == ribosome[:, :24].sum()
    assert first["fraction"] == pytest.approx(ribosome[:, :24].mean())
    assert row["validation", "a", "ribosome"]["labelled_voxels"] == ribosome[:, 24:].sum()
    second = row["training", "b", "membrane"]
    assert second["labelled_voxels"] == membrane[:, :24].sum()
    assert (second["patches"], second["all_patches"]) == (2 * 1 * 3, 2 * 3 * 3)
    assert row["validation", "b", "membrane"]["labelled_voxels"] == 0
    assert second.isna()["particles"]


def test_classes_of_one_list_are_told_apart_by_name(folder):
    text = "score,x,y,z,class_name\n1,6,5,3,fas\n1,12,20,8,ribosome\n1,18,35,12,fas\n"
    for name in "ab":
        (folder / f"{name}.csv").write_text(text)
    classes = {
        name: {"picks": "picks_ribosome", "class_name": name, "radius_voxels": 2}
        for name in ("ribosome", "fas")
    }
    table = open_training_data(config(folder, classes=classes)).counts()
    assert table["particles"].tolist() == [1, 2, 1, 2]
    (folder / "a.csv").write_text("1,2,3\n")
    with pytest.raises(PicksFormatError, match="class_name"):
        open_training_data(config(folder, classes=classes))


def test_a_radius_in_nm_follows_the_voxel_spacing(folder):
    classes = {"ribosome": {"picks": "picks_ribosome", "radius_nm": 3.375}}
    table = open_training_data(config(folder, classes=classes)).counts()
    assert table["labelled_voxels"][0] == truth()[0].sum()  # 3.375 nm at 13.5 Å are 2.5 voxels


def test_a_mask_is_turned_by_the_angles_of_a_motl(folder):
    bar = np.zeros((7, 7, 7), np.uint8)
    bar[3, 3, 3:6] = 1
    write(folder / "bar.mrc", bar)
    row = np.zeros(20)
    row[[3, 7, 8, 9, 16, 19]] = 1, 12, 20, 8, 90, 1  # phi = 90: x to y
    for name in "ab":
        (folder / f"{name}.csv").write_text(",".join(f"{v:g}" for v in row) + "\n")
    classes = {"bar": {"picks": "picks_ribosome", "shape": "mask", "mask_file": folder / "bar.mrc"}}
    data = open_training_data(config(folder, classes=classes))
    target = data.training[0].tomogram.targets.read(Box.whole(SHAPE))[0]
    assert np.argwhere(target).tolist() == [[8, y, 12] for y in (20, 21, 22)]
    write(folder / "bar.mrc", bar, spacing=10)
    with pytest.raises(SpacingError, match="scale the mask"):
        open_training_data(config(folder, classes=classes))


def test_a_network_with_one_answer_per_voxel_gets_classes_without_overlap(folder):
    for name in "ab":
        (folder / f"{name}.csv").write_text("10,11,8\n")  # on the membrane
    for kind, most in (("unet3d", 2), ("deepfinder", 1)):
        data = open_training_data(config(folder, network={"kind": kind}))
        target = data.training[0].tomogram.targets.read(Box.whole(SHAPE))
        assert target.sum(axis=0).max() == most


def test_mirrored_boxes_are_those_of_a_padded_volume():
    voxels = numbered()
    padded = np.pad(voxels, 30, mode="reflect")
    for start in ((-30, 3, -7), (-2, 30, 10), (10, -30, 20)):
        box = Box(start, tuple(a + 20 for a in start))
        found = read_mirrored(lambda b: voxels[b.slices], box, Box.whole(SHAPE))
        assert np.array_equal(found, padded[box.shift((30, 30, 30)).slices])


def test_counts_and_picture_show_both_sides(folder):
    data = open_training_data(config(folder, validation={"fraction": 0.4}))
    text = counts_text(data)
    assert "validation" in text
    assert "patches of 8 x 8 x 8 voxels (zyx), sampling balanced; 24 for validation" in text
    path = folder / "preview.png"
    write_preview(data, path, n_patches=3)
    from matplotlib.image import imread

    picture = imread(path)
    assert picture.shape[0] > 300
    colours = picture.reshape(-1, picture.shape[2])[:, :3]
    assert (np.ptp(colours, axis=1) > 0.2).sum() > 500, "labels are in colour"
    quarter = picture[: picture.shape[0] // 4, -picture.shape[1] // 4 :, :3]
    assert quarter.mean() < 0.8, "no panel of the first row is blank"
