"""Spectrum tables: DeePiCt reads ours, we read DeePiCt's, and wrong files are named."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.core.errors import ConfigError, OutputExistsError
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.io.spectrum import read_physical_spectrum, read_spectrum, write_spectrum

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "deepict" / "spectrum"
amplitudes = st.lists(st.floats(0, 1e300), min_size=1, max_size=30).map(tuple)


@given(amplitudes, st.booleans())
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path_factory, intensity, physical):
    frequency = tuple((i + 1) / 2847.3 for i in range(len(intensity))) if physical else None
    spectrum = Spectrum(intensity, frequency)
    path = write_spectrum(tmp_path_factory.mktemp("s") / "a.tsv", spectrum)
    assert read_spectrum(path) == spectrum


def test_deepict_reads_our_file_by_its_column_names(tmp_path):
    path = write_spectrum(tmp_path / "a.tsv", Spectrum((3.0, 0.1), (0.01, 0.02)))
    table = pd.read_csv(path, sep="\t")
    assert table["intensity"].tolist() == [3.0, 0.1]
    assert table["freq"].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["input_spectrum", "target_spectrum", "target_large_spectrum"])
def test_deepicts_own_files_are_read_and_written_byte_for_byte(tmp_path, name):
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is absent")
    spectrum = read_spectrum(GOLDEN / f"{name}.tsv")
    assert not spectrum.is_physical
    copy = write_spectrum(tmp_path / "copy.tsv", spectrum)
    assert copy.read_bytes() == (GOLDEN / f"{name}.tsv").read_bytes()


def test_a_deepict_file_is_refused_where_frequencies_are_needed(tmp_path):
    path = write_spectrum(tmp_path / "a.tsv", Spectrum((3.0, 0.1)))
    with pytest.raises(ConfigError, match=r"a\.tsv: .*--compat deepict.*`deepict-dask spectrum`"):
        read_physical_spectrum(path)


def test_a_file_with_frequencies_is_taken_where_they_are_needed(tmp_path):
    path = write_spectrum(tmp_path / "a.tsv", Spectrum((3.0, 0.1), (0.01, 0.02)))
    assert read_physical_spectrum(path).frequency_per_angstrom == (0.01, 0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found the columns none"),
        (b"a,b\n1,2\n", "column 'intensity', found the columns 'a,b'"),
        (b"\x93\xff\xfe\x00" * 8, "binary data"),
        (b"freq\tintensity\n", "a header only"),
        (b"freq\tintensity\n0\t1.0\n1\n", "line 3: expected 2 cells .* found 1"),
        (b"freq\tintensity\n0\tone\n", "line 2: expected a number in column 'intensity', .*'one'"),
        (b"freq\tintensity\n0\tnan\n", "a.tsv: spectrum: expected finite amplitudes"),
        (b"freq\tintensity\n0\t-1\n", "finite amplitudes of at least 0"),
        (b"freq\tintensity\tfrequency_per_angstrom\n0\t1\t0.2\n1\t1\t0.1\n", "rising frequencies"),
        (b"freq\tintensity\tfrequency_per_angstrom\n0\t1\t0\n", "rising frequencies"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_reason(tmp_path, content, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_spectrum(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.tsv: .*No such file"):
        read_spectrum(tmp_path / "none.tsv")


def test_a_tomogram_given_by_mistake_is_not_read_whole(tmp_path):
    path = tmp_path / "tomo.mrc"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ConfigError, match="a file of 65 MiB"):
        read_spectrum(path)


def test_windows_line_ends_blank_lines_and_other_column_orders_are_read(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbfintensity\tfreq\r\n2.5\t0\r\n\r\n0.5\t1\r\n")
    assert read_spectrum(path).intensity == (2.5, 0.5)


def test_an_existing_file_is_replaced_only_when_told(tmp_path):
    path = write_spectrum(tmp_path / "a.tsv", Spectrum((1.0,)))
    with pytest.raises(OutputExistsError, match=r"a\.tsv: already exists"):
        write_spectrum(path, Spectrum((2.0,)))
    assert read_spectrum(path).intensity == (1.0,)
    write_spectrum(path, Spectrum((2.0,)), overwrite=True)
    assert read_spectrum(path).intensity == (2.0,)
    assert list(tmp_path.iterdir()) == [path]
