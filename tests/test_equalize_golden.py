"""The compat mode against files that DeePiCt itself wrote (../shared/golden)."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.io.spectrum import read_spectrum

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "deepict"


def in_std(found, wanted):
    """Largest deviation in standard deviations of what is wanted."""
    return float(np.abs(found - wanted).max() / np.std(wanted))


def golden_volume(name):
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is absent")
    with mrcfile.open(GOLDEN / f"{name}.mrc.gz", permissive=True) as file:
        return np.array(file.data)


@pytest.mark.parametrize("name", ["input_spectrum", "target_spectrum"])
def test_the_compat_spectrum_equals_deepicts_file(name):
    volume = golden_volume({"input_spectrum": "inputs/tomo"}.get(name, "inputs/target_tomo"))
    wanted = read_spectrum(GOLDEN / "spectrum" / f"{name}.tsv").intensity
    found = radial_spectrum(volume, None, compat=True)
    np.testing.assert_allclose(found.intensity, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("eq_cutoff40_smooth10", (120, 150, 140)),
        ("eq_crop_cutoff40_smooth10", (95, 150, 138)),
    ],
)
def test_the_compat_volume_equals_deepicts_file(name, shape):
    volume = golden_volume("inputs/tomo")[: shape[0], : shape[1], : shape[2]].copy()
    wanted = golden_volume(f"spectrum/{name}")
    target = read_spectrum(GOLDEN / "spectrum" / "target_spectrum.tsv")
    op = EqualizeOp(target, mode="deepict", cutoff=40, smoothing=10)
    found = op.transform(volume)
    assert found.dtype == np.float32
    assert in_std(found, wanted) < 1e-5
