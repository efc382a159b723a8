"""Equalization by frequency and as DeePiCt published it; oracles are written out in full FFTs."""

import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from deepict_dask.backend import resolve_device, to_device, to_host
from deepict_dask.core.errors import (
    ConfigError,
    DeviceError,
    ShapeMismatchError,
    SpacingError,
    VoxelValueError,
)
from deepict_dask.core.ops import SpectralOp
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.equalization.deepict_compat import (
    deepict_equalize,
    deepict_gain,
    deepict_spectrum,
)
from deepict_dask.equalization.spectrum import RadialKnots

SPACING = 13.48
sides = st.integers(2, 17)
shapes = st.tuples(sides, sides, sides)


def noise(shape, seed=0, offset=5.0):
    """Noise whose amplitudes fall with frequency, as a tomogram's do."""
    rng = np.random.default_rng(seed)
    white = np.fft.rfftn(rng.normal(size=shape))
    falling = 1 / (1 + (distance(shape, 1.0) / 0.1) ** 2) + 0.05
    return (np.fft.irfftn(white * falling, s=shape, axes=(0, 1, 2)) + offset).astype(np.float32)


def distance(shape, spacing):
    """Frequency of each voxel of a half spectrum in 1/Å."""
    z, y = (np.fft.fftfreq(n, spacing) for n in shape[:2])
    return np.sqrt(
        z[:, None, None] ** 2 + y[:, None] ** 2 + np.fft.rfftfreq(shape[2], spacing) ** 2
    )


def filtered(volume, gain_of_frequency, spacing):
    gain = gain_of_frequency(distance(volume.shape, spacing))
    gain[0, 0, 0] = 1
    return np.fft.irfftn(np.fft.rfftn(volume) * gain, s=volume.shape, axes=(0, 1, 2)).astype(
        np.float32
    )


def in_std(found, wanted):
    """Largest deviation in standard deviations of what is wanted."""
    return float(np.abs(found - wanted).max() / np.std(wanted))


def shape_only(volume):
    """The volume without its scale, as a network sees it."""
    return (volume - volume.mean()) / volume.std()


# The published method, on whole arrays -------------------------------------------------------


def published_spectrum(volume):
    t = volume - volume.min()
    t /= t.max()
    modulus = np.abs(np.fft.fftshift(np.fft.fftn(t.astype(np.float64))))
    z, y, x = (np.arange(n) - n / 2 for n in volume.shape)
    radius = np.hypot(np.hypot(y[:, None], x), z[:, None, None])
    shells = (max(volume.shape) / 2 * radius / radius.max()).astype(int)
    return ndimage.mean(modulus, shells, np.arange(1, shells.max() + 1))


def published_kernel(gain, shape):
    axes = []
    for n in shape:
        right = np.arange(-(-n // 2))
        axes.append(np.concatenate([right[::-1] if n % 2 == 0 else right[:0:-1], right]))
    z, y, x = axes
    radius = np.hypot(np.hypot(y[:, None], x), z[:, None, None]).astype(np.float32)
    return np.interp(radius, np.arange(len(gain)), gain, right=0).astype(np.float32)


def published_volume(volume, target, cutoff=0, smoothing=0):
    own = published_spectrum(volume)
    gain = np.pad(target, (0, max(0, len(own) - len(target))))[: len(own)] / own
    n = len(own)
    if cutoff and smoothing:
        slope = n / smoothing
        offset = 2 * slope * ((cutoff - n / 2) / n)
        gain *= 1 / (1 + np.exp(np.linspace(-slope, slope, n) - offset))
    elif cutoff:
        gain[cutoff:] = 0
    t = volume - volume.min()
    t /= t.max()
    shifted = np.fft.fftshift(np.fft.fftn(t.astype(np.float64)))
    return np.abs(np.fft.ifftn(shifted * published_kernel(gain, volume.shape)))


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 99))
def test_the_compat_spectrum_is_the_published_one_for_even_and_odd_axes(shape, seed):
    volume = noise(shape, seed)
    np.testing.assert_allclose(deepict_spectrum(volume), published_spectrum(volume), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 99), st.sampled_from([(0, 0), (3, 0), (3, 2), (0, 2)]))
def test_the_compat_volume_is_the_published_one_for_even_and_odd_axes(shape, seed, low_pass):
    volume = noise(shape, seed)
    target = deepict_spectrum(noise((12, 9, 14), seed + 1))
    wanted = published_volume(volume, target, *low_pass)
    # Where all but the mean was removed, a float32 result cannot hold what is left.
    assume(wanted.std() > 1e-3 * wanted.mean())
    assert in_std(deepict_equalize(volume, target, *low_pass), wanted) < 1e-5


def test_complex64_keeps_its_margin_under_an_offset_that_float32_can_hold():
    volume = noise((32, 40, 36), offset=300.0)
    target = deepict_spectrum(noise((30, 30, 30), 1))
    wanted = deepict_equalize(volume.copy(), target, dtype="complex128")
    assert in_std(deepict_equalize(volume, target), wanted) < 3e-6


def test_a_compat_target_is_cut_or_padded_by_place():
    own = np.full(4, 2.0)
    assert deepict_gain(np.ones(6), own).tolist() == [0.5] * 4
    assert deepict_gain(np.ones(2), own).tolist() == [0.5, 0.5, 0, 0]


def test_a_compat_cutoff_without_smoothing_is_sharp_and_smoothing_alone_does_nothing():
    ones = np.ones(6)
    assert deepict_gain(ones, ones, cutoff=2).tolist() == [1, 1, 0, 0, 0, 0]
    assert deepict_gain(ones, ones, smoothing=2).tolist() == [1] * 6


def test_a_compat_gain_is_zero_where_the_tomogram_has_nothing():
    assert deepict_gain(np.ones(3), np.array([1.0, 0.0, 2.0])).tolist() == [1, 0, 0.5]


# Ours, by frequency in 1/Å -------------------------------------------------------------------


def test_white_noise_has_the_rayleigh_mean_in_any_box_on_any_scale():
    for seed, (shape, scale) in enumerate({(40, 44, 48): 1, (24, 64, 31): 500}.items()):
        volume = np.random.default_rng(seed).normal(scale=scale, size=shape)
        spectrum = radial_spectrum(volume, SPACING)
        inner = spectrum.intensity[5:20]
        assert np.mean(inner) == pytest.approx(np.sqrt(np.pi) / 2, rel=0.02)


def test_a_wave_is_found_at_its_frequency_on_every_axis_of_an_uneven_box():
    for axis, periods in enumerate((5, 10, 20)):
        shape = (20, 40, 80)
        wave = np.sin(2 * np.pi * periods * np.indices(shape)[axis] / shape[axis])
        spectrum = radial_spectrum(wave.astype(np.float32), 10.0)
        strongest = np.argmax(spectrum.intensity)
        assert spectrum.frequency_per_angstrom[strongest] == pytest.approx(
            periods / shape[axis] / 10
        )


def test_the_spectrum_is_the_mean_modulus_round_each_knot():
    volume = noise((9, 14, 12))
    knots = RadialKnots(volume.shape, SPACING)
    full = np.abs(np.fft.fftn(shape_only(volume.astype(np.float64)))) / np.sqrt(volume.size)
    z, y, x = (np.fft.fftfreq(n, SPACING) for n in volume.shape)
    frequency = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    place = np.minimum(np.rint(frequency / knots.step_per_angstrom), knots.n_knots)
    wanted = [full[place == k].mean() for k in range(1, knots.n_knots + 1)]
    np.testing.assert_allclose(radial_spectrum(volume, SPACING).intensity, wanted, rtol=1e-5)


def test_measuring_does_not_change_the_volume():
    volume = noise((8, 9, 10))
    before = volume.copy()
    radial_spectrum(volume, SPACING)
    radial_spectrum(volume, None, compat=True)
    np.testing.assert_array_equal(volume, before)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 99), st.sampled_from([1.0, 1000.0]))
def test_a_tomogram_matched_to_its_own_spectrum_is_returned(shape, seed, scale):
    volume = noise(shape, seed) * np.float32(scale)
    op = EqualizeOp(radial_spectrum(volume, SPACING), SPACING)
    assert in_std(op.transform(volume.copy()), volume) < 1e-5


@pytest.mark.parametrize("shape", [(64, 64, 64), (40, 72, 65)])
def test_a_known_filter_is_undone(shape):
    original = noise(shape)
    blurred = filtered(original, lambda k: np.exp(-(k**2) * 300), SPACING)
    op = EqualizeOp(radial_spectrum(original, SPACING), SPACING)
    found = shape_only(op.transform(blurred.copy()))
    assert np.std(found - shape_only(original)) < 0.01
    assert np.std(shape_only(blurred) - shape_only(original)) > 0.15


def test_the_mean_stays_and_the_power_in_the_band_stays():
    volume = noise((30, 36, 33), offset=-7.0)
    target = radial_spectrum(np.random.default_rng(1).normal(size=(40, 40, 40)), SPACING)
    found = EqualizeOp(target, SPACING).transform(volume.copy())
    assert found.mean() == pytest.approx(volume.mean(), rel=1e-5)
    assert found.std() == pytest.approx(volume.std(), rel=1e-3)
    own = radial_spectrum(found, SPACING)
    wanted = np.interp(own.frequency_per_angstrom, target.frequency_per_angstrom, target.intensity)
    ratio = (np.array(own.intensity) / wanted)[np.array(own.frequency_per_angstrom) < 0.5 / SPACING]
    assert ratio.std() / ratio.mean() < 0.02


def test_a_target_of_half_the_box_gives_what_the_whole_box_gives():
    target = noise((64, 64, 64), 3)
    half = np.ascontiguousarray(target[16:48, 16:48, 16:48])
    volume = filtered(noise((48, 52, 44), 4), lambda k: np.exp(-(k**2) * 1000), SPACING)
    whole = EqualizeOp(radial_spectrum(target, SPACING), SPACING).transform(volume.copy())
    cropped = EqualizeOp(radial_spectrum(half, SPACING), SPACING).transform(volume.copy())
    # The faces of a crop leak power into high frequencies, so the two differ by a few percent.
    assert np.std(shape_only(whole) - shape_only(cropped)) < 0.1
    assert np.std(shape_only(whole) - shape_only(volume)) > 0.3


def test_a_rebinned_tomogram_matches_the_target_of_the_original():
    original = noise((64, 64, 64))
    half = np.fft.fftshift(np.fft.fftn(original))[16:48, 16:48, 16:48]
    rebinned = np.fft.ifftn(np.fft.ifftshift(half)).real.astype(np.float32) / 8
    target = radial_spectrum(original, SPACING)
    found = EqualizeOp(target, 2 * SPACING).transform(rebinned.copy())
    # Knots in the corners of the small box count few voxels, whose amplitudes are random.
    assert np.std(found - rebinned) / np.std(rebinned) < 0.03


def test_grey_values_on_another_scale_match_alike():
    target = noise((32, 32, 32), 1)
    volume = noise((30, 34, 32), 2, offset=0)
    found = EqualizeOp(radial_spectrum(target, SPACING), SPACING).transform(volume.copy())
    scaled = EqualizeOp(radial_spectrum(target * 1000 - 4, SPACING), SPACING)
    assert in_std(scaled.transform(volume * np.float32(64)) / 64, found) < 1e-4


def amplitude_beyond(volume, frequency):
    spectrum = radial_spectrum(volume, SPACING)
    beyond = np.array(spectrum.frequency_per_angstrom) > frequency
    return np.array(spectrum.intensity)[beyond].max()


@pytest.mark.parametrize(("beyond", "least", "most"), [("zero", 0, 1e-5), ("hold", 0.05, 10)])
def test_beyond_the_target_frequencies_are_removed_or_held(beyond, least, most):
    volume = noise((40, 40, 40))
    coarse = radial_spectrum(noise((30, 30, 30), 1), 2 * SPACING)
    found = EqualizeOp(coarse, SPACING, beyond=beyond).transform(volume)
    last = coarse.frequency_per_angstrom[-1]
    assert least <= amplitude_beyond(found, last + 1.5 / (40 * SPACING)) <= most


def test_a_cutoff_in_1_per_angstrom_removes_the_same_in_any_box():
    for shape in ((40, 40, 40), (30, 50, 64)):
        volume = noise(shape)
        target = radial_spectrum(volume, SPACING)
        sharp = EqualizeOp(target, SPACING, cutoff=0.02).transform(volume.copy())
        assert amplitude_beyond(sharp, 0.022) < 1e-5
        smooth = EqualizeOp(target, SPACING, cutoff=0.02, smoothing=0.004).transform(volume.copy())
        wanted = filtered(volume, lambda k: 1 / (1 + np.exp((k - 0.02) / 0.002)), SPACING)
        assert np.std(smooth - wanted) / np.std(wanted) < 0.01


def test_frequencies_that_a_tomogram_lacks_are_not_made_from_rounding_errors():
    volume = filtered(noise((32, 32, 32)), lambda k: (k < 0.02).astype(float), SPACING)
    target = radial_spectrum(np.random.default_rng(0).normal(size=(32, 32, 32)), SPACING)
    found = EqualizeOp(target, SPACING).transform(volume)
    assert amplitude_beyond(found, 0.023) < 1e-3


# Requests that cannot be met -----------------------------------------------------------------

PHYSICAL = Spectrum((2.0, 1.0), (0.01, 0.02))
PLACES = Spectrum((2.0, 1.0))


def test_a_deepict_target_in_the_default_mode_says_what_to_do():
    with pytest.raises(ConfigError, match=r"--compat deepict.*`deepict-dask spectrum`"):
        EqualizeOp(PLACES, SPACING)


def test_our_target_in_deepict_mode_says_what_to_do():
    with pytest.raises(ConfigError, match="spectrum --compat deepict"):
        EqualizeOp(PHYSICAL, mode="deepict")


@pytest.mark.parametrize("spacing", [None, 0.0, -1.0, float("nan")])
def test_a_voxel_spacing_is_needed(spacing):
    volume = noise((4, 4, 4))
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        EqualizeOp(PHYSICAL, spacing).transform(volume)
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        radial_spectrum(volume, spacing)


def test_a_cutoff_below_zero_is_refused():
    with pytest.raises(ConfigError, match="found -1 and 0"):
        EqualizeOp(PHYSICAL, SPACING, cutoff=-1)


def test_a_target_without_anything_in_the_tomograms_band_is_refused():
    with pytest.raises(ConfigError, match="check the voxel spacings"):
        EqualizeOp(Spectrum((1.0,), (1e-6,)), SPACING).transform(noise((8, 8, 8)))


modes = pytest.mark.parametrize(
    "op", [EqualizeOp(PHYSICAL, SPACING), EqualizeOp(PLACES, mode="deepict")]
)


@modes
def test_nan_and_constant_volumes_and_slices_are_refused(op):
    volume = noise((4, 5, 6))
    volume[1, 2, 3] = np.nan
    with pytest.raises(VoxelValueError, match="--fill-nonfinite"):
        op.transform(volume)
    with pytest.raises(VoxelValueError, match="all equal"):
        op.transform(np.full((4, 5, 6), 0.1, np.float32))
    with pytest.raises(ShapeMismatchError, match=r"\(5, 6\)"):
        op.transform(np.zeros((5, 6), np.float32))


# What the engine relies on -------------------------------------------------------------------


@modes
def test_the_op_is_a_small_picklable_spectral_op(op):
    assert isinstance(op, SpectralOp)
    assert pickle.loads(pickle.dumps(op)) == op


@modes
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float64"])
def test_other_voxel_types_give_what_their_float32_gives(op, dtype):
    volume = (noise((9, 10, 12)) * 20).astype(dtype)
    before = volume.copy()
    found = op.transform(volume)
    np.testing.assert_array_equal(volume, before)
    assert found.dtype == np.float32
    assert in_std(found, op.transform(before.astype(np.float32))) < 1e-5


@modes
def test_a_read_only_volume_is_left_alone(op):
    volume = noise((6, 7, 8))
    volume.flags.writeable = False
    before = volume.copy()
    found = op.transform(volume)
    np.testing.assert_array_equal(volume, before)
    np.testing.assert_array_equal(found, op.transform(before))


@modes
def test_slabs_do_not_change_the_result(op, monkeypatch):
    volume = noise((9, 10, 11))
    whole = op.transform(volume.copy())
    monkeypatch.setattr("deepict_dask.equalization.fourier.SLAB_VOXELS", 1)
    assert in_std(op.transform(volume.copy()), whole) < 1e-6


@pytest.mark.gpu
@modes
def test_a_gpu_gives_what_the_cpu_gives(op):
    try:
        gpu = resolve_device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    volume = noise((20, 21, 24))
    found = to_host(op.transform(to_device(volume, gpu)))
    assert in_std(found, op.transform(volume.copy())) < 1e-5
