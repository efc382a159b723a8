"""Equalization of a volume that does not fit a worker equals that of one that does."""

import logging
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from programs import MIB, run_measured, start, wait_until
from test_equalize import in_std, noise
from test_equalize_golden import GOLDEN, golden_volume

from deepict_dask.config import EqualizeSettings
from deepict_dask.core.errors import BudgetError, VolumeFormatError, WorkFailedError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.statistics import StatisticsReduction
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import Progress, transform_volume
from deepict_dask.engine.budget import BASELINE_BYTES, task_budget_bytes
from deepict_dask.engine.scratch import ScratchArray
from deepict_dask.engine.spectral import measure_volume
from deepict_dask.engine.spectral_pieces import PiecewiseTransform
from deepict_dask.engine.spectral_plan import candidate_layouts, plan_spectral, task_bytes
from deepict_dask.equalization import EqualizeOp, SpectrumOp, radial_spectrum
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.spectrum import read_spectrum, write_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume, measure_spectrum
from deepict_dask.jobs.session import Session

SPACING = 13.48
sides = st.integers(2, 24)
shapes = st.tuples(sides, sides, sides)
TARGETS = {
    mode: radial_spectrum(noise((12, 9, 14), 1), SPACING, compat=mode == "deepict")
    for mode in ("physical", "deepict")
}
LOW_PASS = {
    "physical": [(0, 0), (0.025, 0), (0.025, 0.004), (0, 0.004)],
    "deepict": [(0, 0), (3, 0), (3, 2), (0, 2)],
}


def statistics_of(volume):
    reduction = StatisticsReduction(str(volume.dtype))
    (block,) = Grid(volume.shape, volume.shape)
    return reduction.finalize(reduction.measure(block, volume))


def new_sink(folder, shape, chunks):
    header = VolumeHeader(shape, "float32", SPACING)
    return create_ome_zarr(folder / "o.zarr", header, chunks=chunks, overwrite=True)


def voxels_of(sink):
    return open_volume(sink.path).read(Box.whole(sink.header.shape))


def in_pieces(workers, op, layout, volume, folder):
    return PiecewiseTransform(
        workers, op.name, Progress(shown=False), op.in_pieces(volume.shape), layout,
        ArrayReader(volume, SPACING), statistics_of(volume), folder / "pieces",
    )  # fmt: skip


def layouts_for(draw, shape, chunks):
    return draw(st.sampled_from(list(candidate_layouts("complex64", shape, chunks))))


def short_of(workers, budget_bytes):
    """The same workers with less memory: a task may use a little more than this."""
    memory = BASELINE_BYTES + int(budget_bytes / 0.85) + 2
    assert budget_bytes <= task_budget_bytes(memory) <= budget_bytes + 4
    return replace(workers, memory_bytes=memory)


@pytest.mark.parametrize("mode", ["physical", "deepict"])
@given(data=st.data(), shape=shapes, seed=st.integers(0, 99))
def test_pieces_give_what_the_whole_volume_gives(one_worker, tmp_path, mode, data, shape, seed):
    volume = noise(shape, seed, offset=1.0)
    cutoff, smoothing = data.draw(st.sampled_from(LOW_PASS[mode]))
    op = EqualizeOp(TARGETS[mode], SPACING, mode=mode, cutoff=cutoff, smoothing=smoothing)
    wanted = op.transform(volume.copy())
    # Where almost only the mean was left, a float32 result cannot hold what is compared.
    assume(wanted.std() > 0.1 * abs(wanted.mean()))
    sink = new_sink(tmp_path, shape, data.draw(shapes))
    layout = layouts_for(data.draw, shape, sink.write_shape)
    in_pieces(one_worker, op, layout, volume, tmp_path).transform(sink)
    assert in_std(voxels_of(sink), wanted) <= 1e-5
    assert not (tmp_path / "pieces").exists()


@pytest.mark.parametrize("compat", [False, True])
@given(data=st.data(), shape=shapes, seed=st.integers(0, 99))
def test_a_spectrum_in_pieces_is_that_of_the_whole_volume(
    one_worker, tmp_path, compat, data, shape, seed
):
    volume = noise(shape, seed)
    op = SpectrumOp(SPACING, compat)
    layout = layouts_for(data.draw, shape, data.draw(shapes))
    found = in_pieces(one_worker, op, layout, volume, tmp_path).measure()
    wanted = op.measure(volume)
    np.testing.assert_allclose(found.intensity, wanted.intensity, rtol=1e-6)
    assert replace(found, intensity=wanted.intensity) == wanted


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float64"])
@pytest.mark.parametrize("mode", ["physical", "deepict"])
def test_other_voxel_types_go_in_pieces_too(one_worker, tmp_path, mode, dtype):
    volume = (noise((12, 15, 18)) * 10).astype(dtype)
    op = EqualizeOp(TARGETS[mode], SPACING, mode=mode, source_dtype=dtype)
    sink = new_sink(tmp_path, volume.shape, (6, 6, 6))
    layout = list(candidate_layouts("complex64", volume.shape, sink.write_shape))[-2]
    in_pieces(one_worker, op, layout, volume, tmp_path).transform(sink)
    assert in_std(voxels_of(sink), op.transform(volume.copy())) <= 1e-5


@pytest.mark.parametrize("mode", ["physical", "deepict"])
def test_no_byte_depends_on_the_number_of_workers_or_on_the_columns_of_a_sheet(
    any_workers, tmp_path, mode
):
    volume = noise((20, 22, 26))
    op = EqualizeOp(TARGETS[mode], SPACING, mode=mode)
    sink = new_sink(tmp_path, volume.shape, (10, 10, 10))
    layouts = list(candidate_layouts("complex64", volume.shape, sink.write_shape))
    results = []
    for number, workers in any_workers.items():
        in_pieces(workers, op, layouts[number - 1], volume, tmp_path).transform(sink)
        results.append(voxels_of(sink).tobytes())
    assert len({layout.columns for layout in layouts[:3]}) == 3
    assert len(set(results)) == 1


# Which way -----------------------------------------------------------------------------------


class Stages(Progress):
    """Notes the names of the stages that were shown, and whether they were finished."""

    def __init__(self):
        super().__init__(shown=False)
        self.left = {}

    def stage(self, name, total, done=0):
        self.left[name] = total - done
        outer = super().stage(name, total, done)

        @dataclass
        class Counted:
            stages: dict

            def __enter__(self):
                outer.__enter__()
                return self.advance

            def __exit__(self, *exc):
                return outer.__exit__(*exc)

            def advance(self, n):
                self.stages[name] -= n

        return Counted(self.left)


@pytest.mark.parametrize("spare", [0, -8])
def test_the_budget_decides_which_way_and_a_line_says_so(one_worker, tmp_path, caplog, spare):
    volume = noise((40, 44, 48))
    op = EqualizeOp(TARGETS["physical"], SPACING)
    sink, stages = new_sink(tmp_path, volume.shape, (10, 10, 10)), Stages()
    workers = short_of(one_worker, op.bytes_needed(volume.shape) + spare)
    with caplog.at_level(logging.INFO, "deepict_dask"):
        plan = transform_volume(
            workers, op, ArrayReader(volume, SPACING), sink,
            statistics=statistics_of(volume), scratch=tmp_path / "pieces", progress=stages,
        )  # fmt: skip
    (line,) = [text for text in caplog.messages if "equalize" in text]
    assert ("in pieces" in line) == (plan.layout is not None) == (spare < 0)
    names = ["rows", "spectrum", "filter", "voxels"] if spare < 0 else [""]
    assert stages.left == {f"equalize: {name}" if name else "equalize": 0 for name in names}
    assert in_std(voxels_of(sink), op.transform(volume)) <= 1e-5


def test_only_where_the_smallest_pieces_do_not_fit_is_a_volume_refused(one_worker):
    volume = noise((24, 28, 32))
    for op in (EqualizeOp(TARGETS["deepict"], mode="deepict"), SpectrumOp(SPACING)):
        pieces, chunks = op.in_pieces(volume.shape), (8, 8, 8)
        layouts = candidate_layouts(pieces.scratch_dtype, volume.shape, chunks)
        least = min(task_bytes(pieces, layout, chunks) for layout in layouts)
        enough, short = (short_of(one_worker, n).memory_bytes for n in (least, least - 8))
        assert plan_spectral(op, volume.shape, chunks, enough).task_bytes <= least + 8
        with pytest.raises(BudgetError, match=r"needs .* per task.*--memory.*--chunks"):
            plan_spectral(op, volume.shape, chunks, short)


@pytest.mark.parametrize("mode", ["physical", "deepict"])
@pytest.mark.parametrize("shape", [(1000, 1200, 1100), (4000, 4000, 4000), (300, 5800, 4100)])
def test_a_large_volume_is_planned_within_2_gib_with_files_neither_tiny_nor_huge(mode, shape):
    op = EqualizeOp(TARGETS[mode], SPACING, mode=mode)
    plan = plan_spectral(op, shape, (128, 128, 128), 2 << 30)
    assert plan.task_bytes <= task_budget_bytes(2 << 30) < plan.whole_bytes
    chunk = plan.layout.scratch("", "complex64").chunk_bytes
    assert MIB // 2 <= chunk <= 64 * MIB
    halves = 2 if mode == "physical" else 3
    least = halves * 4 * np.prod(shape)
    assert least <= plan.scratch_bytes <= 1.3 * least


# What can go wrong ---------------------------------------------------------------------------


def test_scratch_that_was_never_written_is_not_read_as_zeros(tmp_path):
    array = ScratchArray(str(tmp_path / "a"), (4, 6, 6), (2, 3, 6), "complex64").create()
    array.write(Box((0, 0, 0), (4, 3, 6)), np.zeros((4, 3, 6)))
    assert not array.read(Box((0, 0, 0), (4, 3, 6))).any()
    with pytest.raises(WorkFailedError, match=r"is missing.*run again"):
        array.read(Box((0, 2, 0), (2, 4, 6)))


def test_scratch_that_was_cut_short_or_removed_is_named(tmp_path):
    array = ScratchArray(str(tmp_path / "a"), (2, 2, 2), (2, 2, 2), "complex64").create()
    whole = Box.whole(array.shape)
    array.write(whole, np.ones(array.shape))
    (chunk,) = (tmp_path / "a" / "c").rglob("0/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(WorkFailedError, match="cannot be read"):
        array.read(whole)
    array.remove()
    with pytest.raises((WorkFailedError, VolumeFormatError), match=str(tmp_path / "a")):
        array.read(whole)


@dataclass(frozen=True)
class HalfReader(ArrayReader):
    """Fails in the second half of the volume."""

    def read(self, box):
        if box.stop[0] > self.header.shape[0] // 2:
            raise VolumeFormatError(f"{self.path}: cannot be read (the disk is gone)")
        return super().read(box)


def test_a_failure_leaves_no_scratch_behind(one_worker, tmp_path):
    volume = noise((20, 12, 12))
    op = SpectrumOp(SPACING)
    workers = short_of(one_worker, op.bytes_needed(volume.shape) - 8)
    with pytest.raises(VolumeFormatError, match="the disk is gone"):
        measure_volume(
            workers, op, HalfReader(volume, SPACING),
            statistics=statistics_of(volume), scratch=tmp_path / "pieces",
        )  # fmt: skip
    assert [*tmp_path.iterdir()] == []


# Jobs ----------------------------------------------------------------------------------------


def write_mrc(path, volume):
    with mrcfile.new(path, volume.astype(np.float32)) as file:
        file.voxel_size = SPACING
    return path


@pytest.mark.parametrize("compat", [None, "deepict"])
def test_the_jobs_go_in_pieces_and_leave_nothing_but_their_outputs(one_worker, tmp_path, compat):
    volume = noise((80, 96, 112), offset=1.0)
    source = write_mrc(tmp_path / "in.mrc", volume)
    mode = compat or "physical"
    target = write_spectrum(tmp_path / "t.tsv", TARGETS[mode])
    session = Session(short_of(one_worker, 15 * MIB), Stages(), chunks=(32, 32, 32))
    measure_spectrum(session, source, tmp_path / "own.tsv", compat=compat is not None)
    chosen = EqualizeSettings(target=target, compat=compat)
    equalize_volume(session, source, tmp_path / "o.mrc", chosen)
    assert {"spectrum: rows", "equalize: filter"} < set(session.progress.left)
    assert {path.name for path in tmp_path.iterdir()} == {"in.mrc", "t.tsv", "own.tsv", "o.mrc"}
    own = radial_spectrum(volume, SPACING, compat=compat is not None).intensity
    np.testing.assert_allclose(read_spectrum(tmp_path / "own.tsv").intensity, own, rtol=1e-6)
    wanted = EqualizeOp(TARGETS[mode], SPACING, mode=mode).transform(volume)
    assert in_std(mrcfile.read(tmp_path / "o.mrc"), wanted) <= 1e-5


def test_pieces_equal_deepicts_own_file(one_worker, tmp_path):
    source = write_mrc(tmp_path / "in.mrc", golden_volume("inputs/tomo"))
    target = GOLDEN / "spectrum" / "target_spectrum.tsv"
    session = Session(short_of(one_worker, 20 * MIB), Stages(), chunks=(32, 32, 32))
    chosen = EqualizeSettings(target=target, compat="deepict", cutoff=40, smoothing=10)
    equalize_volume(session, source, tmp_path / "o.mrc", chosen)
    assert "equalize: filter" in session.progress.left
    wanted = golden_volume("spectrum/eq_cutoff40_smooth10")
    assert in_std(mrcfile.read(tmp_path / "o.mrc"), wanted) < 1e-5


# Real workers --------------------------------------------------------------------------------

SHAPE = (192, 384, 512)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A volume of 38 million voxels and targets of both kinds."""
    folder = tmp_path_factory.mktemp("large")
    with mrcfile.new_mmap(folder / "in.mrc", SHAPE, mrc_mode=2) as file:
        file.voxel_size = SPACING
        rng = np.random.default_rng(0)
        for plane in file.data:
            plane[:] = rng.standard_normal(SHAPE[1:], dtype=np.float32)
    for mode, target in TARGETS.items():
        write_spectrum(folder / f"{mode}.tsv", target)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize(("mode", "memory"), [("physical", 245), ("deepict", 295)])
def test_a_worker_equalizes_three_times_what_it_may_hold(large, tmp_path, mode, memory):
    op = EqualizeOp(TARGETS[mode], SPACING, mode=mode)
    plan = plan_spectral(op, SHAPE, (128, 128, 128), memory * MIB)
    assert plan.whole_bytes > 3 * task_budget_bytes(memory * MIB)
    compat = () if mode == "physical" else ("--compat", "deepict")
    peaks = run_measured(
        "--log-level", "info", "equalize", large / "in.mrc", tmp_path / "o.zarr",
        "--target", large / f"{mode}.tsv", "--memory", f"{memory}MiB", *compat,
    )  # fmt: skip
    assert str(plan) in peaks.text
    assert peaks.largest <= BASELINE_BYTES + plan.task_bytes < memory * MIB
    assert [path.name for path in tmp_path.iterdir()] == ["o.zarr"]


@pytest.mark.slow
def test_an_interrupted_equalization_leaves_nothing(large, tmp_path):
    process = start(
        "equalize", large / "in.mrc", tmp_path / "o.zarr",
        "--target", large / "physical.tsv", "--memory", "245MiB",
    )  # fmt: skip
    wait_until((tmp_path / "o.zarr.partial" / "pieces" / "part_0" / "c").exists, process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in text
    assert [*tmp_path.iterdir()] == []
