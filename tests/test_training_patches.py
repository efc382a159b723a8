"""Where patches lie: balanced, uniform, by labels, on the grid of the reference, in one slice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from training_scenes import BALLS, CENTRES, PATCH, config, folder, labels, numbered, truth, write

from deepict_dask.core.geometry import Box
from deepict_dask.training.data import open_training_data
from deepict_dask.training.sampling import grid_boxes, is_kept

__all__ = ["folder"]


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
