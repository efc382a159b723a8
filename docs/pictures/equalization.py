"""A tomogram with the amplitudes of another microscope, matched to those that a network knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import style
from scipy.ndimage import gaussian_filter

from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.synthetic import CellSettings, make_cell

if TYPE_CHECKING:
    from pathlib import Path

SPACING_ANGSTROM = 13.48
SHAPE = (64, 128, 128)


def draw(path: Path) -> None:
    """Draw slices before and after, and the three spectra."""
    cells = [
        make_cell(
            CellSettings(
                SHAPE,
                n_ribosomes=20,
                n_fas=5,
                n_distractors_each=3,
                signal_to_noise=0.03,
                seed=seed,
            )
        )
        for seed in (1, 2)
    ]
    trained_on = cells[0].tomogram
    dulled = cells[1].tomogram - 0.9 * gaussian_filter(cells[1].tomogram, 3)  # low ones are weak
    target = radial_spectrum(trained_on.copy(), SPACING_ANGSTROM)
    op = EqualizeOp(target, voxel_spacing_angstrom=SPACING_ANGSTROM)
    equalized = op.transform(dulled.copy())
    figure, (left, middle, right) = style.panels(
        ["as it came", "equalized", "mean amplitude at each frequency"], widths=(1, 1, 1.25)
    )
    style.grey(left, style.smoothed(dulled)[32])
    style.grey(middle, style.smoothed(equalized)[32])
    drawn = (
        ("target", target, style.GREY, 5.0),
        ("as it came", radial_spectrum(dulled, SPACING_ANGSTROM), style.RED, 1.5),
        ("equalized", radial_spectrum(equalized, SPACING_ANGSTROM), style.BLUE, 1.5),
    )
    for name, spectrum, colour, width in drawn:
        right.semilogy(
            spectrum.frequency_per_angstrom, spectrum.intensity, color=colour, lw=width, label=name
        )
    right.set_xlabel("frequency (1/Å)")
    right.legend()
    style.write(figure, path)
