"""A full disk and Ctrl-C: one message, an exit code, nothing that looks complete."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess

import psutil
import pytest
from command_scenes import (
    THREADS,
    check_one_message,
    command,
    deepict,
    files,
    finish,
    model,
    noise,
    start,
)
from programs import files_of, marks, times_of, wait_until, workers_of
from typer.testing import CliRunner

from deepict_dask import cli
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume

__all__ = ["files", "model", "noise"]

SMALL = ("--workers", "1", "--memory", "405MiB", "--no-progress", "--chunks", "32")
"""So little memory that a window is a fraction of the volume."""


def as_user(*arguments):
    """Run the installed program."""
    return finish(start(*arguments))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB; calling it makes it large."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    options = ("-t", "tmpfs", "-o", "size=1m", "tmpfs", place)
    made = mount and subprocess.run([mount, *options], capture_output=True, check=False)
    if not made or made.returncode:
        pytest.skip("this user may not mount a small disk")
    yield place, lambda: subprocess.run([mount, "-o", "remount,size=64m", place], check=True)
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("stage", ["convert", "segment"])
def test_a_full_disk_stops_with_one_message_and_the_rest_is_made_later(
    noise, files, model, small_disk, stage
):
    place, enlarge = small_disk
    line = command(stage, noise, place, files, model, SMALL)
    outcome = as_user(*line)
    check_one_message(outcome, "o.zarr", "the disk is full", "run the same command again", code=1)
    assert [path.name for path in place.iterdir()] == ["o.zarr.partial"]
    done = sum(marks(place / "o.zarr.partial"))
    assert 0 < done < len(marks(place / "o.zarr.partial"))
    before = times_of(next((place / "o.zarr.partial").glob("*/volume.zarr")))
    enlarge()
    assert deepict(*line, *THREADS).code == 0
    after = times_of(place / "o.zarr")
    kept = [name for name, at in before.items() if "/c/" in name and after[name] == at]
    assert len(kept) >= done
    assert [path.name for path in place.iterdir()] == ["o.zarr"]


def test_a_full_disk_leaves_no_picks_and_the_same_command_makes_them_later(noise, small_disk):
    place, enlarge = small_disk
    line = ("pick", noise, place / "o", "--threshold", "1.5", "--connectivity", "6", *SMALL)
    check_one_message(as_user(*line), "the disk is full", "run the same command again", code=1)
    assert [*place.iterdir()] == []
    enlarge()
    done = deepict(*line, *THREADS)
    assert done.code == 0
    assert len(read_picks(place / "o" / "picks.csv")) == int(done.out.split()[0]) > 1000


@pytest.mark.parametrize("name", ["o.zarr", "o.mrc"])
def test_a_full_disk_leaves_no_equalized_volume(noise, files, small_disk, name):
    place, enlarge = small_disk
    line = ("equalize", noise, place / name, "--target", files / "t.tsv", *THREADS)
    check_one_message(
        deepict(*line), name, "the disk is full", "run the same command again", code=1
    )
    assert [*place.iterdir()] == []
    enlarge()
    assert deepict(*line).code == 0
    assert open_volume(place / name).header.shape == (64, 96, 96)


def interrupt(process):
    """Press Ctrl-C: the terminal sends the signal to the driver and to its workers."""
    workers = workers_of(process)
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGCONT)
    outcome = finish(process)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlived their driver"
    return outcome


def test_a_segmentation_refuses_company_stops_at_ctrl_c_and_continues(
    noise, files, model, tmp_path
):
    target, partial = tmp_path / "o.zarr", tmp_path / "o.zarr.partial"
    line = command("segment", noise, tmp_path, files, model, SMALL)
    process = start(*line)
    wait_until(lambda: 1 in marks(partial), process)
    os.killpg(process.pid, signal.SIGSTOP)
    company = deepict(*line, *THREADS)
    check_one_message(company, "o.zarr", "another run making it", "wait for it to end")
    outcome = interrupt(process)
    check_one_message(outcome, "interrupted", "run the same command again", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["o.zarr.partial"]
    done = sum(marks(partial))
    assert 0 < done < len(marks(partial)), "interrupted before the end"
    before = times_of(next(partial.glob("*/volume.zarr")))
    assert deepict(*line, *THREADS).code == 0
    after = times_of(target)
    kept = [name for name, at in before.items() if "/c/" in name and after[name] == at]
    assert len(kept) >= done
    undisturbed = tmp_path / "undisturbed" / "o.zarr"
    assert deepict(*line[:2], undisturbed, *line[3:], *THREADS).code == 0
    assert files_of(target) == files_of(undisturbed)


def test_picking_stops_at_ctrl_c_and_leaves_nothing_half_done(noise, tmp_path):
    line = ("pick", noise, tmp_path / "o", "--threshold", "1.5", "--label-map", *SMALL)
    process = start(*line)
    wait_until(lambda: any((tmp_path / "o.partial").glob("*/*.zarr/0/c")), process)
    os.killpg(process.pid, signal.SIGSTOP)
    assert not (tmp_path / "o").exists()
    check_one_message(interrupt(process), "interrupted", "run the same command again", code=1)
    assert [*tmp_path.iterdir()] == []
    assert deepict(*line, *THREADS).code == 0
    undisturbed = tmp_path / "undisturbed" / "o"
    assert deepict(*line[:2], undisturbed, *line[3:], *THREADS).code == 0
    made, expected = files_of(tmp_path / "o"), files_of(undisturbed)
    assert made.pop("run.json")  # it notes the time
    assert expected.pop("run.json")
    assert made == expected


def test_of_an_interruption_before_its_time_only_our_message_is_shown(caplog):
    """A Ctrl-C between a wait of distributed and its first step is logged as an exception."""
    CliRunner().invoke(cli.app, ["doctor"])
    log = logging.getLogger("tornado.application")
    log.critical("Exception in callback functools.partial(<function sync.<locals>.cancel at 0x7f>)")
    log.critical("Exception in callback functools.partial(<function write at 0x7f>)")
    shown = [r.getMessage() for r in caplog.records if r.name == "tornado.application"]
    assert shown == ["Exception in callback functools.partial(<function write at 0x7f>)"]


def test_ctrl_c_while_workers_start_is_one_message_too(noise, tmp_path):
    process = start("pick", noise, tmp_path / "o", *SMALL)
    wait_until(lambda: workers_of(process), process)
    check_one_message(interrupt(process), "interrupted", code=1)
    assert [*tmp_path.iterdir()] == []
