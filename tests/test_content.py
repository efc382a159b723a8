"""Files are known by what is in them, and damage to what was made is found and mended."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mrcfile
import numpy as np
import pytest
from content_scenes import cache, reads
from programs import files_of

from deepict_dask.config import RunConfig
from deepict_dask.core.errors import VolumeFormatError, WorkFailedError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import (
    Ledger,
    Progress,
    StagedOutput,
    content,
    damage_in,
    fingerprint,
    patience,
)
from deepict_dask.engine.arrays import run_block
from deepict_dask.engine.patience import patiently
from deepict_dask.io.disk import disk_of
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.convert import CopyOp, convert_volume
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.volume_output import VolumeOutput
from deepict_dask.pipeline import run_pipeline

__all__ = ["cache", "reads"]

SHAPE, CHUNK = (8, 8, 16), (4, 4, 4)
SIZE = 3 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cell.mrc"
    path.write_bytes(np.random.default_rng(1).bytes(SIZE))
    return path


def change(path, place):
    """Change one byte; the date stays."""
    before = path.stat()
    with path.open("r+b") as opened:
        opened.seek(place)
        old = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([old ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("place", [0, 100_001, 1 << 20, SIZE - 1])
def test_one_changed_byte_with_the_old_date_is_another_content(file, place):
    before, date = fingerprint(file), file.stat().st_mtime_ns
    change(file, place)
    assert file.stat().st_mtime_ns == date
    assert fingerprint(file) != before
    change(file, place)
    assert fingerprint(file) == before


def test_a_touched_or_copied_file_is_the_same_content(file, tmp_path):
    before = fingerprint(file)
    os.utime(file, (1, 1))
    assert fingerprint(file) == before
    assert fingerprint(shutil.copy(file, tmp_path / "other.mrc")) == before


def test_an_unchanged_file_is_read_once_and_a_touched_one_again(file, reads):
    for _ in range(3):
        fingerprint(file)
    assert reads == ["cell.mrc"]
    os.utime(file, (1, 1))
    fingerprint(file)
    assert reads == ["cell.mrc"] * 2


def test_a_file_that_changed_a_moment_ago_is_not_remembered(file, reads, monkeypatch):
    monkeypatch.setattr(content, "SETTLED_NS", 1 << 62)
    fingerprint(file)
    fingerprint(file)
    assert reads == ["cell.mrc"] * 2


def test_a_cache_that_cannot_be_written_or_read_changes_nothing(file, cache):
    before = fingerprint(file)
    for note in cache.rglob("*"):
        if note.is_file():
            note.write_bytes(b"\xff nonsense")
    assert fingerprint(file) == before
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    assert fingerprint(file) == before


def test_many_readers_at_once_agree_and_leave_one_note(file, cache):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: fingerprint(file), range(40)))
    assert len(found) == 1
    assert len([p for p in cache.rglob("*") if p.is_file()]) == 1


def test_a_store_is_known_by_its_names_and_its_bytes(tmp_path):
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    make_store(one)
    shutil.copytree(one, two)
    before = fingerprint(one)
    assert fingerprint(two) == before
    change(two / "0/c/1/1/3", 30)
    assert fingerprint(two) != before
    change(two / "0/c/1/1/3", 30)
    assert fingerprint(two) == before
    (two / "0/c/0/0/0").rename(two / "0/c/0/0/9")
    assert fingerprint(two) != before


def test_the_content_of_nothing_is_refused(tmp_path):
    with pytest.raises(VolumeFormatError, match=r"a\.mrc: expected a file, found nothing"):
        fingerprint(tmp_path / "a.mrc")


def make_store(path, dtype="float32"):
    voxels = np.random.default_rng(2).normal(size=SHAPE, scale=50).astype(dtype)
    writer = create_ome_zarr(path, VolumeHeader(SHAPE, dtype, 10.0), chunks=CHUNK)
    for block in Grid(SHAPE, CHUNK):
        writer.write(block.write, voxels[block.write.slices])


def flip(path):
    change(path, 7)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def delete(path):
    path.unlink()


damages = pytest.mark.parametrize("damage", [flip, cut, delete])


@damages
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_damage_to_any_chunk_of_a_finished_store_is_found(tmp_path, damage, dtype):
    store = tmp_path / "scores.zarr"
    make_store(store, dtype)
    assert damage_in(store) == ""
    assert damage_in(tmp_path) == ""
    damage(store / "0/c/1/0/2")
    assert "scores.zarr" in damage_in(store)
    assert "scores.zarr" in damage_in(tmp_path)  # in a folder of results


class StoppedError(Exception):
    """Stands for a process that ends here."""


@damages
def test_damaged_blocks_of_unfinished_work_are_made_again_and_no_others(
    tmp_path, damage, one_worker, monkeypatch, caplog
):
    source, target = tmp_path / "cell.mrc", tmp_path / "copy.zarr"
    noise = np.random.default_rng(3).normal(size=(16, 16, 32)).astype("float32")
    mrcfile.write(source, noise, voxel_size=10)
    session = Session(one_worker, Progress(shown=False), CHUNK)
    convert_volume(session, source, tmp_path / "undisturbed.zarr")
    mark, n_marked = Ledger.mark, []

    def stop_after_twenty(self, number):
        mark(self, number)
        n_marked.append(number)
        if len(n_marked) == 20:
            raise StoppedError

    monkeypatch.setattr(Ledger, "mark", stop_after_twenty)
    with pytest.raises(StoppedError):
        convert_volume(session, source, target)
    partial = target.with_name("copy.zarr.partial")
    grid, (victim, *_) = Grid((16, 16, 32), CHUNK), n_marked
    index = [a // c for a, c in zip(grid[victim].write.start, CHUNK, strict=True)]
    damage(next(partial.glob("*/volume.zarr")) / "0/c" / "/".join(map(str, index)))
    made = []
    monkeypatch.setattr(Ledger, "mark", lambda self, n: (made.append(n), mark(self, n)))
    convert_volume(session, source, target)
    assert {*made} & {*n_marked} == {victim}
    assert "1 of 20 finished blocks are damaged or missing" in caplog.text
    assert files_of(target) == files_of(tmp_path / "undisturbed.zarr")


def test_blocks_that_are_on_the_disk_without_a_mark_are_not_made_again(
    tmp_path, one_worker, monkeypatch
):
    source, target = tmp_path / "cell.mrc", tmp_path / "copy.zarr"
    mrcfile.write(source, np.ones((16, 16, 32), "float32"), voxel_size=10)
    session = Session(one_worker, Progress(shown=False), CHUNK)
    mark, made = Ledger.mark, []

    def stop_before_all(_self, number):
        made.append(number)
        if len(made) == 30:
            raise StoppedError

    monkeypatch.setattr(Ledger, "mark", stop_before_all)
    with pytest.raises(StoppedError):
        convert_volume(session, source, target)
    again = []
    monkeypatch.setattr(Ledger, "mark", lambda self, n: (again.append(n), mark(self, n)))
    convert_volume(session, source, target)
    assert not {*again} & {*made}


def test_chunks_of_other_blocks_are_not_taken_for_finished(tmp_path):
    header, fine, coarse = VolumeHeader(SHAPE, "float32", 10.0), CHUNK, (8, 8, 8)
    for shape, n_found in ((fine, 0), (coarse, 0), (coarse, 2), (fine, 0)):
        with StagedOutput(tmp_path / "a.zarr", "1" * 64) as staged:
            output, grid = VolumeOutput(staged), Grid(SHAPE, shape)
            sink = output.sink(header, CHUNK)
            with output.ledger(grid) as ledger:
                assert ledger.n_resumed == n_found
            for block in grid:
                sink.write(block.write, np.ones(block.write.shape, "float32"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network with random weights."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

    torch.manual_seed(0)
    model = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    save_model(path, model, class_names=("ribosome",), voxel_spacing_angstrom=10.0)
    return path


@damages
def test_a_damaged_stage_output_is_made_again_and_what_follows_is_kept(
    tmp_path, damage, one_worker, network
):
    noise = np.random.default_rng(3).normal(size=(32, 32, 32)).astype("float32")
    mrcfile.write(tmp_path / "cell.mrc", noise, voxel_size=10)
    config = RunConfig.model_validate({
        "tomograms": str(tmp_path / "cell.mrc"), "output": str(tmp_path / "out"),
        "chunks": [16, 16, 16], "segment": [{"model": str(network)}], "pick": [{"threshold": 0.9}],
    })  # fmt: skip
    session = Session(one_worker, Progress(shown=False), CHUNK)
    run_pipeline(session, config)
    cell = tmp_path / "out" / "cell"
    before = files_of(cell)
    damage(cell / "scores_model.zarr/0/c/1/0/1")
    lines = []
    run_pipeline(session, config, say=lines.append)
    assert len([line for line in lines if "scores_model.zarr is damaged and is made" in line]) == 1
    assert "cell: picks_0 is up to date" in lines
    assert files_of(cell) == before


@dataclass
class Flaky:
    """A volume whose storage fails a few times, and one that is written likewise."""

    n_failures: int
    error: OSError
    path: str = "net/cell.mrc"
    written: int = 0

    def read(self, box):
        self._work()
        return np.zeros(box.shape, "float32")

    def write(self, *_what):
        self._work()
        self.written += 1

    def _work(self):
        self.n_failures -= 1
        if self.n_failures >= 0:
            try:
                raise self.error
            except OSError as error:
                raise VolumeFormatError("a reader's own words") from error


@pytest.fixture
def pauses(monkeypatch):
    seen = []
    monkeypatch.setattr(patience.time, "sleep", seen.append)
    return seen


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_storage_that_fails_twice_and_then_works_is_waited_for(pauses, number):
    source, sink = (Flaky(2, OSError(number, os.strerror(number))) for _ in range(2))
    run_block(CopyOp("float32"), [source], sink, Grid(SHAPE, SHAPE)[0])
    assert sink.written == 1
    assert pauses == [*patience.PAUSES_S[:2]] * 2


def test_storage_that_never_works_ends_with_the_file_and_the_reason(pauses):
    source = Flaky(99, OSError(errno.ESTALE, "Stale file handle"))
    with pytest.raises(
        WorkFailedError, match=r"reading net/cell\.mrc: .*Stale file handle 4 times"
    ):
        run_block(CopyOp("float32"), [source], source, Grid(SHAPE, SHAPE)[0])
    assert pauses == [*patience.PAUSES_S]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT, errno.EACCES])
def test_what_waiting_cannot_mend_fails_at_once(pauses, number):
    with pytest.raises(VolumeFormatError):
        patiently(lambda: Flaky(1, OSError(number, "no")).read(Box.whole(SHAPE)), "reading")
    assert pauses == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only the superuser can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_named_with_the_bytes_needed_and_the_run_continues_later(
    tmp_path, small_disk, one_worker
):
    source, target = tmp_path / "cell.mrc", small_disk / "copy.zarr"
    noise = np.random.default_rng(3).normal(size=(64, 64, 128)).astype("float32")  # 2 MiB
    mrcfile.write(source, noise, voxel_size=10)
    session = Session(one_worker, Progress(shown=False), (16, 16, 32))
    convert_volume(session, source, tmp_path / "undisturbed.zarr")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    with pytest.raises(WorkFailedError) as caught:
        convert_volume(session, source, target)
    words = str(caught.value)
    assert f"the disk is full: {small_disk} has " in words
    assert "\n" not in words
    needed = int(words.split("another ")[1].split()[0])
    assert 0.9 * (1 << 20) < needed < 1.2 * (1 << 20)
    assert not target.exists()
    done = (small_disk / "copy.zarr.partial" / ".ledger").read_bytes().count(b"\x01")
    assert 10 < done < 64
    ballast.unlink()
    convert_volume(session, source, target)
    assert files_of(target) == files_of(tmp_path / "undisturbed.zarr")
    assert [p.name for p in small_disk.iterdir()] == ["copy.zarr"]


def test_a_disk_is_where_it_is_mounted(small_disk):
    assert disk_of(small_disk / "a" / "b.zarr") == small_disk
