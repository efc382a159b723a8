"""Are batches what the config asks for, and never a held-out voxel among them?"""

from __future__ import annotations

import gzip
import pickle
from itertools import pairwise

import mrcfile
import numpy as np
import pytest

from deepict_dask.config.training import TrainConfig
from deepict_dask.core.errors import (
    ConfigError,
    PicksFormatError,
    ShapeMismatchError,
    SpacingError,
    VoxelValueError,
)
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine.content import fingerprint
from deepict_dask.io.volumes import create_volume
from deepict_dask.training.data import open_training_data
from deepict_dask.training.preview import counts_text, write_preview
from deepict_dask.training.sampling import grid_boxes, is_kept
from deepict_dask.training.targets import sphere_target
from deepict_dask.training.voxels import read_mirrored

SHAPE = (16, 40, 24)
PATCH = (8, 8, 8)
CENTRES = np.array([[3, 5, 6], [8, 20, 12], [12, 35, 18], [4, 30, 6]])
BALLS = {"ribosome": {"picks": "picks_ribosome", "radius_voxels": 2.5}}
MEMBRANE = {"membrane": {"labels": "labels", "values": [3]}}


def write(path, voxels, spacing=13.5):
    mrcfile.write(path, voxels, voxel_size=spacing, overwrite=True)


def numbered():
    """Return a tomogram of which each voxel says where it is."""
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def replaced(text, old, new):
    assert old in text
    return text.replace(old, new)


def labels():
    found = np.zeros(SHAPE, np.int8)
    found[2:12, 10:13, :] = 3
    found[:, :, 20] = 1
    return found


@pytest.fixture
def folder(tmp_path):
    """Two tomograms with particles and labels, and a table of them."""
    for name in "ab":
        write(tmp_path / f"{name}.mrc", numbered())
        write(tmp_path / f"{name}_labels.mrc", labels())
        rows = "\n".join(f"{x},{y},{z}" for z, y, x in CENTRES)
        (tmp_path / f"{name}.csv").write_text(f"{rows}\n")
    lines = [f"{n},{n}.mrc,{n}_labels.mrc,{n}.csv" for n in "ab"]
    (tmp_path / "cells.csv").write_text(
        "\n".join(["name,tomogram,labels,picks_ribosome", *lines]) + "\n"
    )
    return tmp_path


def config(folder, **changes):
    settings = {
        "tomograms": folder / "cells.csv",
        "output": folder / "model",
        "classes": BALLS | MEMBRANE,
        "patches": {"shape": PATCH},
        "augment": {"flips": False},
    }
    return TrainConfig.model_validate({**settings, **changes})


def original(data, images):
    """Return the numbers of the voxels of a batch."""
    tomogram = data.training[0].tomogram
    return np.rint(images * np.float32(tomogram.std) + np.float32(tomogram.mean)).astype(int)


def truth():
    balls = sphere_target(CENTRES, SHAPE, 2.5)
    return np.stack([balls, (labels() == 3).astype(np.uint8)])


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
        "augment": {"gaussian_noise": 0.1, "rotation_degrees": 10, "elastic": 1},
    }
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
            augment={"rotation_degrees": 180, "elastic": 2},
        )
    )
    tomogram = data.training[0].tomogram
    held_out = (1e5 - tomogram.mean) / tomogram.std
    for step in range(10):
        assert data.batch(step)[0].max() < held_out
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


def test_balanced_patches_hold_a_class_in_their_middle_and_all_classes_alike(folder):
    sampling = {"shape": PATCH, "sampling": "balanced", "centred_fraction": 1.0}
    data = open_training_data(config(folder, patches=sampling))
    middle = np.zeros(2)
    for step in range(60):
        _, targets = data.batch(step)
        inner = targets[:, :, 2:6, 2:6, 2:6].any(axis=(2, 3, 4))
        assert inner.any(axis=1).all()
        middle += inner.sum(axis=0)
    assert 0.4 < middle[0] / middle[1] < 1.6


def test_every_particle_and_every_tomogram_is_drawn(folder):
    sampling = {"shape": PATCH, "centred_fraction": 1.0}
    data = open_training_data(config(folder, classes=BALLS, patches=sampling))
    drawn = [data.patch_of(step, slot) for step in range(40) for slot in range(4)]
    assert {patch.part for patch in drawn} == {0, 1}
    for centre in CENTRES:
        held = [all(a <= c < b for a, c, b in zip(p.box.start, centre, p.box.stop, strict=True))
                for p in drawn]  # fmt: skip
        assert sum(held) > 20


def test_uniform_patches_lie_anywhere_and_larger_tomograms_come_more_often(folder):
    write(folder / "b.mrc", numbered()[:, :16])
    write(folder / "b_labels.mrc", labels()[:, :16])
    (folder / "b.csv").write_text("6,5,3\n")
    patches = {"shape": PATCH, "sampling": "uniform"}
    data = open_training_data(config(folder, patches=patches))
    drawn = [data.patch_of(step, slot) for step in range(150) for slot in range(4)]
    assert np.mean([patch.part == 0 for patch in drawn]) == pytest.approx(40 / 56, abs=0.06)
    starts = {patch.box.start for patch in drawn if patch.part == 0}
    assert {y for _, y, _ in starts} == set(range(33))
    assert {x for _, _, x in starts} == set(range(17))


def test_labelled_patches_have_more_labels_than_the_least_part(folder):
    patches = {"shape": PATCH, "sampling": "labelled", "min_label_fraction": 0.1}
    data = open_training_data(config(folder, patches=patches))
    for step in range(20):
        _, targets = data.batch(step)
        assert (targets.mean(axis=(2, 3, 4)).max(axis=1) > 0.1).all()


def test_the_grid_is_the_references_on_a_case_by_hand():
    """Of 60 voxels, 64 with an overlap of 12: (60 + 20) // 40 = 2 boxes, the first from -12."""
    found = grid_boxes(Box.whole((60, 64, 79)), (64, 64, 64), 12)
    assert [box.start for box in found] == [(z, y, x) for z in (-12, 28) for y in (-12, 28)
                                            for x in (-12, 28)]  # fmt: skip
    assert len(grid_boxes(Box.whole((59, 64, 64)), (64, 64, 64), 12)) == 1 * 2 * 2
    assert grid_boxes(Box.whole((39, 40, 40)), (64, 64, 64), 12)[0].start == (-12, -12, -12)


def test_the_grid_draws_every_kept_patch_once_before_one_comes_again(folder):
    patches = {"shape": PATCH, "sampling": "grid", "overlap": 2, "min_label_fraction": 0.05}
    data = open_training_data(config(folder, patches=patches))
    padded = np.pad(truth(), [(0, 0), (2, 6), (2, 6), (2, 6)], mode="reflect")
    kept = set()
    for z, y, x in np.ndindex(4, 10, 6):  # inner 4: 16 / 4, 40 / 4, 24 / 4
        target = padded[:, 4 * z : 4 * z + 8, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8]
        if 0.05 < target.mean(axis=(1, 2, 3)).max() < 1:
            kept |= {(part, (4 * z - 2, 4 * y - 2, 4 * x - 2)) for part in (0, 1)}
    assert data.sampler.n_grid_patches == len(kept)
    numbers = [data.patch_of(step, slot) for step in range(len(kept)) for slot in range(4)]
    drawn = [(patch.part, patch.box.start) for patch in numbers]
    turns = [drawn[k * len(kept) : (k + 1) * len(kept)] for k in range(4)]
    assert all(set(turn) == kept for turn in turns)
    assert all(one != two for one, two in pairwise(turns))


def test_a_patch_that_one_class_fills_is_not_kept_by_the_grid():
    full, empty = np.ones((1, 2, 2, 2), np.uint8), np.zeros((1, 2, 2, 2), np.uint8)
    assert not is_kept(full, 0.0)
    assert not is_kept(empty, 0.0)
    assert is_kept(np.concatenate([full, empty], axis=3), 0.0)


def test_flat_patches_for_2d_networks_are_one_slice(folder):
    settings = config(
        folder, network={"kind": "unet2d"}, patches={"shape": (1, 16, 16)},
        augment={"quarter_turns": True}, validation={"fraction": 0.4},
    )  # fmt: skip
    data = open_training_data(settings)
    images, targets = data.batch(0)
    assert images.shape == (4, 1, 1, 16, 16)
    assert targets.shape == (4, 2, 1, 16, 16)
    assert data.n_validation_patches == 2 * 16 * 1 * 2
    row = data.counts().query("role == 'training' and class_name == 'membrane'").iloc[0]
    assert (row["patches"], row["all_patches"]) == (10 * 1 * 2, 16 * 2 * 2)


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


PROBLEMS = {
    "an empty class": (
        {"classes": BALLS | {"er": {"labels": "labels", "values": [9]}}},
        None, ConfigError, "class er: expected labelled voxels",
    ),
    "no patch with labels": (
        {"patches": {"shape": PATCH, "sampling": "grid", "overlap": 2, "min_label_fraction": 0.9}},
        None, ConfigError, "lower min_label_fraction",
    ),
    "an unknown column": (
        {"classes": {"fas": {"picks": "fas", "radius_voxels": 2}}},
        None, ConfigError,
        r"cells\.csv: tomogram a: class fas: expected picks to be one of labels, picks_ribosome, ",
    ),
    "a tomogram smaller than a patch": (
        {"patches": {"shape": (32, 32, 32)}},
        None, ShapeMismatchError, r"at least the \(32, 32, 32\) voxels",
    ),
    "a held-out name that is not there": (
        {"validation": {"tomograms": ["c"]}}, None, ConfigError,
        r"validation\.tomograms: expected names of .*cells\.csv \(a, b\), .*unknown: c",
    ),
    "everything held out": (
        {"validation": {"tomograms": ["a", "b"]}}, None, ConfigError, "all of them held out",
    ),
    "nothing of a tomogram held out": (
        {"validation": {"fraction": 0.001}}, None, ConfigError, "which is 0",
    ),
    "an overlap that leaves nothing": (
        {"patches": {"shape": PATCH, "sampling": "grid", "overlap": 4}},
        None, ConfigError, "overlap below half",
    ),
    "labels of another shape": (
        {}, lambda f: write(f / "b_labels.mrc", labels()[1:]),
        ShapeMismatchError, r"\(16, 40, 24\) voxels .* found \(15, 40, 24\)",
    ),
    "particles outside": (
        {}, lambda f: (f / "b.csv").write_text("3,5,3\n90,5,3\n"),
        PicksFormatError, "1 of 2 outside",
    ),
    "voxel spacings that differ": (
        {}, lambda f: write(f / "b.mrc", numbered(), 15), SpacingError, "found 15 Å",
    ),
    "a voxel that is NaN": (
        {}, lambda f: write(f / "b.mrc", np.where(numbered() == 50, np.nan, numbered())),
        VoxelValueError, r"1 of 15360 NaN or infinite, the first at zyx \(0, 2, 2\)",
    ),
    "a tomogram of one value": (
        {}, lambda f: write(f / "b.mrc", np.ones(SHAPE, np.float32)), VoxelValueError, "differ",
    ),
    "a tomogram without a list": (
        {}, lambda f: (f / "cells.csv").write_text(
            replaced((f / "cells.csv").read_text(), "b.csv", "")),
        ConfigError, "tomogram b: class ribosome: expected a file under picks_ribosome, found none",
    ),
    "a list of particles without angles for a mask": (
        {"classes": {"r": {"picks": "picks_ribosome", "shape": "mask", "mask_file": "a.mrc"}}},
        None, PicksFormatError, "rlnAngleRot",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Data array contains NaN:RuntimeWarning")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_would_train_wrongly_is_refused_by_name(folder, problem, monkeypatch):
    changes, spoil, error, said = PROBLEMS[problem]
    monkeypatch.chdir(folder)
    if spoil:
        spoil(folder)
    with pytest.raises(error, match=said):
        open_training_data(config(folder, **changes))


def test_a_few_particles_outside_are_left_out(folder):
    rows = [f"{3 + k % 15},{5 + k % 30},{4 + k % 9}" for k in range(40)]
    (folder / "b.csv").write_text("\n".join([*rows, "90,5,3"]) + "\n")
    table = open_training_data(config(folder)).counts()
    assert table.query("tomogram == 'b' and class_name == 'ribosome'")["particles"].item() == 40


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
