"""Levels of a pyramid are what NumPy says, for any shape and chunks, and lie where they should."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io import pyramid
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.ome_zarr import open_ome_zarr
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.pyramid import HalvedReader, halve, level_factors
from deepict_dask.jobs import pyramid as job
from deepict_dask.jobs.convert import convert_volume
from deepict_dask.jobs.session import Session

SPACING = 13.48
ORIGIN = (10.0, -20.0, 30.0)


def plain_halved(array, reduce):
    """One voxel at a time, as the rule says it."""
    steps = [2 if n > 1 else 1 for n in array.shape]
    out = np.empty([-(-n // s) for n, s in zip(array.shape, steps, strict=True)], array.dtype)
    for index in np.ndindex(out.shape):
        box = tuple(slice(i * s, i * s + s) for i, s in zip(index, steps, strict=True))
        out[index] = reduce(array[box])
    return out


def most_frequent(values):
    found, counts = np.unique(values, return_counts=True)
    return found[counts == counts.max()].max()


def rounded_mean(values):
    mean = values.mean(dtype=np.float64)
    return mean if values.dtype.kind == "f" else np.rint(mean)


def store(path, array, **kwargs):
    header = VolumeHeader(array.shape, array.dtype.name, SPACING, ORIGIN)
    create_ome_zarr(path, header, **kwargs).write(Box.whole(array.shape), array)
    return path


SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


@given(shape=SHAPES, seed=st.integers(0, 99), dtype=st.sampled_from(["float32", "int16", "uint8"]))
def test_a_level_of_means_is_that_of_numpy(shape, seed, dtype):
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    expected = plain_halved(array, rounded_mean)
    np.testing.assert_allclose(halve(array, "mean"), expected, rtol=1e-6)
    assert halve(array, "mean").dtype == dtype


@given(shape=SHAPES, seed=st.integers(0, 99), n=st.integers(1, 4))
def test_a_level_of_majorities_is_that_of_numpy(shape, seed, n):
    array = np.random.default_rng(seed).integers(0, n, shape).astype("uint16")
    np.testing.assert_array_equal(halve(array, "majority"), plain_halved(array, most_frequent))


@given(
    shape=SHAPES, chunk=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 99),
    method=st.sampled_from(["mean", "majority"]), data=st.data(),
)  # fmt: skip
def test_a_box_of_a_level_does_not_depend_on_how_it_is_read(shape, chunk, seed, method, data):
    array = np.random.default_rng(seed).integers(0, 3, shape).astype("int16")
    whole = halve(array, method)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in whole.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, whole.shape, strict=True))
    box = Box(start, stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "_LEAST_PIECE", 1)
        reader = HalvedReader(ArrayReader(array), method, chunk)
        assert reader.header.shape == whole.shape
        np.testing.assert_array_equal(reader.read(box), whole[box.slices])


@given(shape=st.tuples(*[st.integers(1, 5000)] * 3))
def test_levels_end_between_64_and_128_voxels(shape):
    factors = level_factors(shape)
    last = [-(-n // f) for n, f in zip(shape, factors[-1], strict=True)]
    assert max(last) <= 128
    assert len(factors) == 1 or max(last) > 64


@pytest.fixture
def coarse(monkeypatch):
    """Levels of small volumes: down to 8 voxels."""
    monkeypatch.setattr(pyramid, "COARSEST", 8)


@pytest.mark.parametrize("method", ["mean", "majority"])
@pytest.mark.parametrize(
    ("chunks", "shards"), [((5, 7, 8), None), ((64, 64, 64), None), ((4, 4, 4), (8, 16, 8))]
)
@pytest.mark.usefixtures("coarse")
def test_a_pyramid_is_the_same_for_any_chunks(tmp_path, two_workers, method, chunks, shards):
    array = np.random.default_rng(1).integers(0, 4, (23, 33, 18)).astype("uint8")
    source = store(tmp_path / "in.zarr", array)
    target = tmp_path / "out.zarr"
    convert_volume(
        Session(two_workers, chunks=chunks), source, target, pyramid=method, shards=shards
    )
    expected = array
    for level in range(4):
        _, reader = open_ome_zarr(target / str(level))
        assert not (target / str(level) / "c").is_file()
        np.testing.assert_array_equal(reader.read(Box.whole(reader.header.shape)), expected)
        expected = plain_halved(expected, {"mean": rounded_mean, "majority": most_frequent}[method])
    assert not (target / "4").exists()
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.usefixtures("coarse")
def test_the_centre_of_a_voxel_lies_in_the_middle_of_those_it_stands_for(tmp_path, two_workers):
    """A ramp of positions in Å, averaged: each level must hold the positions of its voxels."""
    z, y, x = (np.arange(n) * SPACING + o for n, o in zip((16, 32, 8), ORIGIN, strict=True))
    for axis, ramp in enumerate(np.meshgrid(z, y, x, indexing="ij")):
        source = store(tmp_path / f"in{axis}.zarr", ramp.astype("float64"))
        target = tmp_path / f"out{axis}.zarr"
        convert_volume(Session(two_workers), source, target, pyramid="mean")
        for level in range(3):
            _, reader = open_ome_zarr(target / str(level))
            header, values = reader.header, reader.read(Box.whole(reader.header.shape))
            assert header.voxel_spacing_angstrom == pytest.approx(SPACING * 2**level)
            found = np.moveaxis(values, axis, 0)[:, 0, 0]
            steps = np.arange(len(found)) * header.voxel_spacing_angstrom
            np.testing.assert_allclose(found, header.origin_angstrom[axis] + steps, rtol=1e-6)


@pytest.mark.usefixtures("coarse")
def test_spacing_and_origin_of_the_full_volume_survive(tmp_path, two_workers):
    source = store(tmp_path / "in.zarr", np.ones((9, 10, 11), "float32"))
    target = convert_volume(Session(two_workers), source, tmp_path / "out.zarr", pyramid="mean")
    header = open_ome_zarr(target)[1].header
    assert (header.shape, header.voxel_spacing_angstrom) == ((9, 10, 11), SPACING)
    assert header.origin_angstrom == ORIGIN


@pytest.mark.parametrize("shape", [(20, 31, 9), (1, 30, 30)])
@pytest.mark.usefixtures("coarse")
def test_the_metadata_are_valid_to_ome_zarr_models(tmp_path, two_workers, shape):
    import zarr
    from ome_zarr_models.v05 import Image

    source = store(tmp_path / "in.zarr", np.ones(shape, "float32"))
    target = convert_volume(Session(two_workers), source, tmp_path / "out.zarr", pyramid="mean")
    image = Image.from_zarr(zarr.open_group(target, mode="r"))
    (multiscale,) = image.ome_attributes.multiscales
    assert [one.path for one in multiscale.datasets] == ["0", "1", "2"]
    assert multiscale.type == "mean"


@pytest.mark.usefixtures("coarse")
def test_a_pyramid_that_was_killed_goes_on(tmp_path, two_workers, monkeypatch):
    array = np.random.default_rng(0).normal(size=(20, 40, 40)).astype("float32")
    source = store(tmp_path / "in.zarr", array)
    session, target = Session(two_workers, chunks=(8, 8, 8)), tmp_path / "out.zarr"
    real, n_written = job.map_chunks, []

    def killed_in_level_2(workers, op, sources, sink, grid, **kwargs):
        ledger = kwargs["ledger"]
        n_written.append((sink.level, len(list(ledger.unfinished()))))
        if sink.level == 2 and len(n_written) == 2:
            raise KeyboardInterrupt
        real(workers, op, sources, sink, grid, **kwargs)

    monkeypatch.setattr(job, "map_chunks", killed_in_level_2)
    with pytest.raises(KeyboardInterrupt):
        convert_volume(session, source, target, pyramid="mean")
    assert not target.exists()
    (lost,) = itertools.islice((tmp_path / "out.zarr.partial").glob("*/volume.zarr/1/c/0/0/0"), 1)
    lost.unlink()
    convert_volume(session, source, target, pyramid="mean")
    assert n_written == [(1, 18), (2, 4), (1, 1), (2, 4), (3, 1)]
    _, reader = open_ome_zarr(target / "1")
    np.testing.assert_array_equal(reader.read(Box.whole(reader.header.shape)), halve(array, "mean"))


def test_what_reading_holds_is_planned():
    """Of a stand-in that returns new arrays, as a store does."""
    array = np.random.default_rng(0).integers(0, 3, (128, 128, 128)).astype("uint8")
    for method, dtype in itertools.product(["mean", "majority"], ["uint8", "int16"]):
        reader = HalvedReader(ArrayReader(array.astype(dtype)), method, (64, 64, 64))
        tracemalloc.start()
        reader.read(Box.whole((64, 64, 64)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= reader.bytes_needed((64, 64, 64))


def test_what_makes_no_pyramid_is_refused(tmp_path, two_workers):
    source = store(tmp_path / "in.zarr", np.ones((4, 4, 4), "float32"))
    session = Session(two_workers)
    for target, method, message in [
        ("a.mrc", "mean", r"ending in \.zarr for --pyramid"),
        ("a.zarr", "median", "expected mean .* or majority"),
        ("a.zarr", "majority", "expected labels .* found float32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            convert_volume(session, source, tmp_path / target, pyramid=method)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zarr"]


def test_the_command_makes_a_pyramid(tmp_path):
    source = store(tmp_path / "in.zarr", np.ones((4, 4, 200), "float32"))
    target = tmp_path / "out.zarr"
    words = ["convert", str(source), str(target), "--pyramid", "mean", "--workers", "1"]
    result = CliRunner().invoke(app, [*words, "--no-progress"])
    assert result.exit_code == 0, result.output
    attributes = json.loads((target / "zarr.json").read_text())["attributes"]
    assert [one["path"] for one in attributes["ome"]["multiscales"][0]["datasets"]] == ["0", "1"]
