"""Does augmentation do what its settings say, to image and target alike?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepict_dask.config.training import AugmentSettings
from deepict_dask.core.errors import ConfigError
from deepict_dask.training.augment import Augmentation, elastic_displacement

OFF = {"flips": False}


def applied(change, image, target=None, seed=0):
    """Apply to an image of the patch's size, mirrored into the margin as batches are."""
    pad = [(m, m) for m in change.margin]
    target = np.zeros((1, *image.shape), np.uint8) if target is None else target
    grown = np.pad(image, pad, mode="reflect"), np.pad(target, [(0, 0), *pad], mode="reflect")
    return change.apply(*grown, np.random.default_rng(seed))


def noise(shape=(12, 20, 20), seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def blobs(shape=(16, 40, 40)):
    """Return a smooth image, and the target of its voxels above 1/2."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    places = [(8, 12, 14), (5, 28, 22), (11, 20, 31)]
    squares = [(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 for a, b, c in places]
    image = sum(np.exp(-s / 40) for s in squares).astype(np.float32)
    return image, (image > 0.5).astype(np.uint8)[None]


def test_with_everything_off_a_patch_stays_as_it_is():
    image = noise()
    found, target = applied(Augmentation(AugmentSettings(**OFF), image.shape), image)
    assert np.array_equal(found, image)
    assert not target.any()
    assert not np.shares_memory(found, image), "a tomogram that is kept must not be changed"


def test_flips_are_all_eight_and_alike_for_image_and_target():
    image = noise((3, 4, 5))
    change = Augmentation(AugmentSettings(), image.shape)
    seen = set()
    for seed in range(80):
        found, target = applied(change, image, (image > 0).astype(np.uint8)[None], seed)
        assert np.array_equal(found > 0, target[0] > 0)
        seen.add(found.tobytes())
    axes = [[k for k in range(3) if n >> k & 1] for n in range(8)]
    assert seen == {np.ascontiguousarray(np.flip(image, a)).tobytes() for a in axes}


def test_quarter_turns_are_about_z_only():
    image = noise((3, 4, 4))
    change = Augmentation(AugmentSettings(flips=False, quarter_turns=True), image.shape)
    seen = {applied(change, image, seed=seed)[0].tobytes() for seed in range(40)}
    assert seen == {np.rot90(image, k, (1, 2)).tobytes() for k in range(4)}


def test_quarter_turns_of_patches_that_are_not_square_are_refused():
    with pytest.raises(ConfigError, match="square"):
        Augmentation(AugmentSettings(quarter_turns=True), (4, 4, 8))


def test_gaussian_noise_is_as_strong_as_the_setting_at_most_and_differs_from_patch_to_patch():
    change = Augmentation(AugmentSettings(gaussian_noise=0.5, **OFF), (16, 16, 16))
    image = np.zeros((16, 16, 16), np.float32)
    strengths = [applied(change, image, seed=seed)[0].std() for seed in range(60)]
    assert max(strengths) < 0.5 * 1.03
    assert min(strengths) < 0.05
    assert np.mean(strengths) == pytest.approx(0.25, abs=0.06)


def test_noise_of_the_tomograms_is_another_patch_subtracted_and_leaves_deviation_and_target():
    change = Augmentation(AugmentSettings(tomogram_noise=0.6, **OFF), (20, 20, 20))
    image, elsewhere = noise((20, 20, 20)), noise((20, 20, 20), seed=2)
    target = (image > 1).astype(np.uint8)[None]
    weights = []
    for seed in range(60):
        found, same = change.apply(image, target, np.random.default_rng(seed), elsewhere)
        assert np.array_equal(same, target)
        assert found.dtype == np.float32
        assert found.std() == pytest.approx(1, abs=0.03)
        share = float((found * image).mean())  # of the image: 1 / sqrt(1 + weight squared)
        rest = found - np.float32(share) * image
        match = [
            float((rest * np.flip(elsewhere, axes)).mean() / share)
            for axes in ((), 0, 1, 2, (0, 1), (0, 2), (1, 2), (0, 1, 2))
        ]
        weights.append(-min(match))
    assert max(weights) < 0.6 * 1.06
    assert min(weights) < 0.1
    assert np.mean(weights) == pytest.approx(0.3, abs=0.07)


def test_salt_and_pepper_replaces_a_part_of_the_voxels_by_both_signs():
    settings_ = AugmentSettings(salt_and_pepper=0.2, salt_and_pepper_amplitude=3, **OFF)
    change = Augmentation(settings_, (16, 16, 16))
    parts = []
    for seed in range(60):
        found, _ = applied(change, np.zeros((16, 16, 16), np.float32), seed=seed)
        size = np.abs(found).max()
        assert size <= 3
        assert set(np.unique(np.abs(found))) <= {np.float32(0), size}
        parts.append(np.mean(found != 0))
        if parts[-1] > 0.02:
            assert np.mean(found > 0) == pytest.approx(parts[-1] / 2, rel=0.3)
    assert max(parts) < 0.22
    assert np.mean(parts) == pytest.approx(0.1, abs=0.025)


def test_contrast_is_a_line_through_the_old_values():
    image = noise()
    found, _ = applied(Augmentation(AugmentSettings(contrast=0.2, **OFF), image.shape), image)
    factor, shift = np.polyfit(image.ravel().astype(float), found.ravel().astype(float), 1)
    assert np.allclose(found, factor * image + shift, atol=1e-5)
    assert 0.8 <= factor <= 1.2
    assert abs(shift) <= 0.2
    assert factor != 1


@pytest.mark.parametrize("names", [{"rotation_degrees": 180}, {"elastic": 3.0}, {"scale": 0.2}])
def test_a_moved_target_lies_where_the_moved_image_is_bright(names):
    image, target = blobs()
    change = Augmentation(AugmentSettings(**names, **OFF), image.shape)
    most = 0.0
    for seed in range(12):
        found, moved = applied(change, image, target, seed)
        assert set(np.unique(moved)) <= {0, 1}
        assert moved.any()
        assert moved.shape == target.shape
        assert found.shape == image.shape
        sure = np.abs(found - 0.5) > 0.12  # the nearest voxel is half a voxel off at most
        assert np.array_equal(moved[0][sure], (found > 0.5)[sure])
        most = max(most, float(np.abs(found - image).max()))
    assert most > 0.08, "something moved"


def test_a_turn_is_about_z_and_never_larger_than_the_setting():
    image = np.zeros((5, 33, 33), np.float32)
    image[:, 16, 22:26] = 1
    image[2] *= 2
    change = Augmentation(AugmentSettings(rotation_degrees=30, **OFF), image.shape)
    angles = []
    for seed in range(40):
        found, _ = applied(change, image, seed=seed)
        assert np.allclose(found[2], 2 * found[0], atol=1e-4), "slices stay in their place"
        y, x = np.tensordot(found[0], np.indices((33, 33)) - 16, axes=([0, 1], [1, 2]))
        angles.append(np.degrees(np.arctan2(y, x)))
    assert max(np.abs(angles)) < 31
    assert max(angles) > 15
    assert min(angles) < -15


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)),
    size=st.floats(0, 10),
    seed=st.integers(0, 99),
)
def test_no_voxel_is_displaced_further_than_asked_for(shape, size, seed):
    moved = elastic_displacement(shape, size, np.random.default_rng(seed))
    assert moved.shape == (3, *shape)
    assert np.sqrt((moved**2).sum(axis=0)).max() <= size * (1 + 1e-5)
    for axis, n in enumerate(shape):
        assert n > 1 or not moved[axis].any()


def test_a_displacement_is_smooth_and_large_enough_to_matter():
    moved = elastic_displacement((64, 64, 64), 4.0, np.random.default_rng(0))
    assert np.sqrt((moved**2).sum(axis=0)).mean() > 0.8
    assert np.abs(np.diff(moved, axis=3)).max() < 0.5, "neighbours stay neighbours"


def test_an_elastic_patch_without_displacement_is_the_middle_of_what_was_read(monkeypatch):
    image, target = blobs()
    change = Augmentation(AugmentSettings(elastic=2.0, **OFF), image.shape)
    monkeypatch.setattr(
        "deepict_dask.training.augment.elastic_displacement",
        lambda shape, _size, _rng: np.zeros((3, *shape), np.float32),
    )
    found, moved = applied(change, image, target)
    assert np.allclose(found, image, atol=1e-5)
    assert np.array_equal(moved, target)


def test_a_flat_patch_is_turned_and_displaced_within_its_slice():
    image = noise((1, 32, 32))
    change = Augmentation(
        AugmentSettings(elastic=2.0, rotation_degrees=20, quarter_turns=True), image.shape
    )
    assert change.margin[0] == 0
    values = set(image.ravel().tolist())
    found = [applied(change, image, seed=seed)[0] for seed in range(12)]
    assert {one.shape for one in found} == {(1, 32, 32)}
    moved = [not set(one.ravel().tolist()) <= values for one in found]
    assert 2 <= sum(moved) <= 10, "half of them are interpolated"


def test_the_margin_holds_all_that_the_largest_turn_fetches():
    for degrees in (5, 45, 180):
        change = Augmentation(AugmentSettings(rotation_degrees=degrees, **OFF), (2, 20, 31))
        for angle in np.radians(np.linspace(-degrees, degrees, 41)):
            places = change._turned(angle, 1.0)
            for axis, (n, margin) in enumerate(zip((20, 31), change.margin[1:], strict=True)):
                assert places[axis + 1].min() >= 0
                assert places[axis + 1].max() <= n + 2 * margin - 1


@pytest.mark.parametrize("shape", [(16, 20, 31), (1, 20, 31)])
def test_the_margin_holds_all_that_the_largest_region_fetches(shape):
    change = Augmentation(AugmentSettings(rotation_degrees=30, scale=0.3, **OFF), shape)
    for angle in np.radians(np.linspace(-30, 30, 13)):
        places = change._turned(angle, 1.3)
        for axis, (n, margin) in enumerate(zip(shape, change.margin, strict=True)):
            assert places[axis].min() >= 0
            assert places[axis].max() <= n + 2 * margin - 1


def test_a_change_of_size_is_never_larger_than_the_setting():
    image = np.zeros((9, 41, 41), np.float32)
    image[4, 20, [10, 30]] = 1
    change = Augmentation(AugmentSettings(scale=0.2, **OFF), image.shape)
    lengths = []
    for seed in range(40):
        found, _ = applied(change, image, seed=seed)
        right, left = found[4, 20, 21:], found[4, 20, :20]
        lengths.append(
            right @ np.arange(1, 21) / right.sum() + left @ np.arange(20, 0, -1) / left.sum()
        )
    assert min(lengths) < 18.5
    assert max(lengths) > 21.5
    assert 20 / 1.2 - 0.5 < min(lengths) < max(lengths) < 20 / 0.8 + 0.5


def test_half_turns_are_about_y_only():
    image = noise((3, 4, 5))
    change = Augmentation(AugmentSettings(half_turns=True, **OFF), image.shape)
    seen = {applied(change, image, seed=seed)[0].tobytes() for seed in range(20)}
    assert seen == {image.tobytes(), np.ascontiguousarray(image[::-1, :, ::-1]).tobytes()}


def test_the_same_generator_makes_the_same_bytes():
    image = noise()
    names = {"gaussian_noise": 0.3, "salt_and_pepper": 0.1, "elastic": 2, "rotation_degrees": 9}
    change = Augmentation(AugmentSettings(contrast=0.1, **names), image.shape)
    for seed in range(4):
        one, two, other = (applied(change, image, seed=k)[0] for k in (seed, seed, seed + 1))
        assert one.tobytes() == two.tobytes() != other.tobytes()
