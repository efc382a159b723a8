"""See a scene as an electron microscope does.

1. Weak-phase contrast transfer with an envelope: protein is dark, fine detail is weak.
2. The missing wedge: a tilt series about y up to some angle measures no frequency that is nearer
   to the beam (z) than that. It is empty in signal and in noise alike, as in a reconstruction.
3. Noise: Gaussian, weak where many projections measure, and blurred by the detector.

Gains are float32 on the half grid of `scipy.fft.rfftn`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import fft

if TYPE_CHECKING:
    from .settings import CellSettings

__all__ = ["coloured_noise", "contrast_transfer", "measured_frequencies", "noise_power", "see"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def see(density: Floats, settings: CellSettings) -> Floats:
    """Return the noise-free image of a density.

    Parameters
    ----------
    density
        Float32, zyx.
    settings
        Optics and wedge.

    Returns
    -------
    ndarray
        Float32, zyx, of mean 0; where there is mass it is dark.

    Examples
    --------
    >>> from deepict_dask.synthetic import CellSettings
    >>> ball = np.zeros((32, 32, 32), np.float32)
    >>> ball[12:20, 12:20, 12:20] = 1
    >>> image = see(ball, CellSettings(shape=(32, 32, 32)))
    >>> bool(image[16, 16, 16] < 0), abs(float(image.mean())) < 1e-6
    (True, True)
    """
    gain = contrast_transfer(_frequency(settings), settings) * measured_frequencies(settings)
    gain[0, 0, 0] = 0
    return _filtered(density, gain)


def coloured_noise(settings: CellSettings, rng: np.random.Generator) -> Floats:
    """Return Gaussian noise of mean 0 as float32, zyx, with the power of `noise_power`."""
    noise = rng.standard_normal(settings.shape, dtype=np.float32)
    return _filtered(noise, np.sqrt(noise_power(settings)))


def noise_power(settings: CellSettings) -> Floats:
    """Return the noise power of each frequency on the grid of rfftn, float32, in any unit.

    Power rises with the distance from the tilt axis, because a tilt series measures a frequency
    near the axis in many projections and one far from it in few, and falls as the detector
    blurs. A constant is added for what is no particle but is there in every cytosol.

    Examples
    --------
    >>> from deepict_dask.synthetic import CellSettings
    >>> power = noise_power(CellSettings(shape=(32, 32, 32)))
    >>> power.shape, bool(power[0, 0, 1] < power[0, 0, 6])
    ((32, 32, 17), True)
    """
    z, _, x = _axis_frequencies(settings.shape)
    from_axis = np.sqrt(z**2 + x**2) / np.float32(settings.voxel_spacing_angstrom)
    blur = (_frequency(settings) * np.float32(settings.detector_blur_angstrom)) ** 2
    rise = from_axis + np.float32(1 / settings.noise_floor_angstrom)
    power = rise / (1 + blur) * measured_frequencies(settings)
    power[0, 0, 0] = 0
    return power.astype(np.float32)


def contrast_transfer(frequency: Floats, settings: CellSettings) -> Floats:
    """Return the transfer of a weak phase object, envelope included; negative where mass is dark.

    Parameters
    ----------
    frequency
        Float32, in 1/Å, any shape.
    settings
        Voltage, defocus, aberration, phase plate, amplitude contrast and B-factor.

    Examples
    --------
    >>> from deepict_dask.synthetic import CellSettings
    >>> settings = CellSettings(phase_shift_degrees=0, amplitude_contrast=0.1)
    >>> contrast_transfer(np.zeros(1, np.float32), settings).round(3)
    array([-0.1], dtype=float32)
    """
    wavelength = _wavelength_angstrom(settings.voltage_kv)
    square = frequency.astype(np.float32) ** 2
    phase = (
        np.pi * wavelength * settings.defocus_um * 1e4 * square
        - 0.5 * np.pi * settings.spherical_aberration_mm * 1e7 * wavelength**3 * square**2
    )
    shift = math.asin(settings.amplitude_contrast) + math.radians(settings.phase_shift_degrees)
    envelope = np.exp(-settings.b_factor_angstrom2 / 4 * square)
    return (-np.sin(phase + shift) * envelope).astype(np.float32)


def measured_frequencies(settings: CellSettings) -> Bools:
    """Return which frequencies a tilt series about y measures, on the grid of rfftn.

    Examples
    --------
    >>> from deepict_dask.synthetic import CellSettings
    >>> measured = measured_frequencies(CellSettings(shape=(32, 32, 32)))
    >>> bool(measured[0, 5, 5]), bool(measured[5, 0, 0])
    (True, False)
    """
    beam, along_x = (
        np.abs(_axis_frequencies(settings.shape)[0]),
        _axis_frequencies(settings.shape)[2],
    )
    limit = np.float32(math.tan(math.radians(settings.max_tilt_degrees)))
    measured = beam <= along_x * limit + np.float32(1e-6)
    return np.ascontiguousarray(np.broadcast_to(measured, _half_shape(settings.shape)))


def _wavelength_angstrom(voltage_kv: float) -> float:
    """Return the relativistic wavelength of an electron."""
    volts = voltage_kv * 1e3
    return 12.2643 / math.sqrt(volts + 0.97845e-6 * volts**2)


def _half_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return (shape[0], shape[1], shape[2] // 2 + 1)


def _axis_frequencies(shape: tuple[int, int, int]) -> tuple[Floats, Floats, Floats]:
    """Return frequencies per voxel on each axis of the half grid, ready to broadcast."""
    nz, ny, nx = shape
    return (
        fft.fftfreq(nz).astype(np.float32)[:, None, None],
        fft.fftfreq(ny).astype(np.float32)[None, :, None],
        fft.rfftfreq(nx).astype(np.float32)[None, None, :],
    )


def _frequency(settings: CellSettings) -> Floats:
    """Return the length of every frequency of the half grid in 1/Å."""
    z, y, x = _axis_frequencies(settings.shape)
    return np.sqrt(z**2 + y**2 + x**2) / np.float32(settings.voxel_spacing_angstrom)


def _filtered(volume: Floats, gain: Floats) -> Floats:
    spectrum = fft.rfftn(volume)
    spectrum *= gain
    return fft.irfftn(spectrum, s=volume.shape)
