"""Fetching into a folder that holds something; the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from fetch_server import (
    QUICK,
    SUM,
    busy,
    one,
    settings,
    some_bytes,
    tree,
)
from typer.testing import CliRunner

from deepict_dask.cli import fetching, run_guarded
from deepict_dask.core.errors import OutputExistsError
from deepict_dask.fetch import (
    FetchError,
    FetchSettings,
    Selection,
    Web,
    fetch,
)
from deepict_dask.fetch.parallel import each

# What is here already


def test_a_second_run_fetches_nothing(deposit, tmp_path):
    chosen = settings("*.rec", empiar_url=deposit.url)
    fetch("EMPIAR-10988", tmp_path, chosen)
    before = len([a for a in deposit.asked if a[0] == "GET" and a[1].endswith(".rec")])
    report = fetch("EMPIAR-10988", tmp_path, chosen)
    assert len([a for a in deposit.asked if a[0] == "GET" and a[1].endswith(".rec")]) == before == 2
    assert report.fetched == ()
    assert len(report.kept) == 2


def test_a_different_file_here_is_refused_before_anything_is_fetched(deposit, tmp_path):
    here = tmp_path / "DEF/tomograms/TS_026.rec"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"TS_026\.rec: 4 bytes here, 30000 on the server"):
        fetch("EMPIAR-10988", tmp_path, settings("*.rec", empiar_url=deposit.url))
    assert tree(tmp_path) == {"DEF/tomograms/TS_026.rec": b"mine"}


def test_a_different_file_here_is_replaced_when_asked(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(5000))
    (tmp_path / "f.bin").write_bytes(b"mine")
    one(archive, tmp_path, overwrite=True).check()
    assert tree(tmp_path) == {"f.bin": body}


def test_a_file_of_the_right_size_but_another_checksum_is_refused(archive, tmp_path):
    archive.put("/f.bin", b"abc")
    (tmp_path / "f.bin").write_bytes(b"abd")
    (tmp_path / "sums").write_text(f"{SUM}  f.bin\n")
    with pytest.raises(OutputExistsError, match="3 bytes, but another checksum"):
        one(archive, tmp_path, selection=Selection(checksums=str(tmp_path / "sums")))


def test_a_disk_that_is_too_full_is_found_before_anything_is_fetched(
    archive, tmp_path, monkeypatch
):
    archive.put("/f.bin", some_bytes(5000))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=4999))
    with pytest.raises(FetchError, match=r"expected 4\.9 KiB free for 1 files"):
        one(archive, tmp_path / "not" / "yet")
    assert archive.gets("/f.bin") == []


def test_names_that_would_overwrite_one_another_are_refused(archive, tmp_path):
    archive.put("/d/a.rec", b"a")
    archive.put("/d/a.rec.part", b"b")
    with pytest.raises(FetchError, match=r"a\.rec and a\.rec\.part cannot be fetched together"):
        fetch(f"{archive.url}d/", tmp_path, settings())


def test_a_part_that_another_program_writes_is_left_alone(archive, tmp_path):
    import fcntl

    archive.put("/f.bin", some_bytes(5000))
    with (tmp_path / "f.bin.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another program is fetching it" in one(archive, tmp_path).failed["f.bin"]


# The command


@pytest.fixture
def command():
    app = typer.Typer()
    app.callback()(lambda: None)
    fetching.register(app)
    return app


def exit_code(command, *words):
    """Run a command as the program does."""
    with pytest.raises(SystemExit) as left:
        run_guarded(lambda: command(["fetch", *map(str, words)], standalone_mode=False))
    return left.value.code


def test_the_command_lists_files_with_the_sum_of_their_sizes(command, deposit):
    words = ["fetch", "EMPIAR-10988", "--match", "*.rec", "--list", "--base-url", deposit.url]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "          30000  DEF/tomograms/TS 027.rec",
        "          30000  DEF/tomograms/TS_026.rec",
        "2 files, 60000 bytes (58.6 KiB)",
    ]


def test_the_command_fetches_from_the_mirror_of_the_environment(
    command, deposit, tmp_path, monkeypatch
):
    monkeypatch.setenv("DEEPICT_DASK_EMPIAR_URL", deposit.url)
    words = ["fetch", "EMPIAR-10988", str(tmp_path), "--match", "*.csv", "--match", "*.mrc"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert "2 files (29.3 KiB) fetched" in result.stdout
    assert "2 had no checksum: only their sizes were compared" in result.stdout
    assert len(tree(tmp_path)) == 2


def test_the_command_ends_with_1_and_a_table_when_files_fail(command, deposit, tmp_path, capsys):
    deposit.fail("/10988/data/DEF/tomograms/TS_026.rec", busy(500))
    words = (
        "EMPIAR-10988",
        tmp_path,
        "--match",
        "*.rec",
        "--base-url",
        deposit.url,
        "--retries",
        0,
    )
    assert exit_code(command, *words) == 1
    out, err = capsys.readouterr()
    assert "1 files (29.3 KiB) fetched" in out
    assert "error: 1 of 2 files could not be fetched" in err
    assert "  DEF/tomograms/TS_026.rec  the server says 500" in err


def test_the_command_ends_with_2_when_nothing_matches_or_no_folder_is_named(
    command, deposit, capsys
):
    words = ("EMPIAR-10988", "--base-url", deposit.url)
    assert exit_code(command, *words) == 2
    assert "expected a folder DEST to fill" in capsys.readouterr().err
    assert exit_code(command, *words, "x", "--match", "*.tif") == 2
    assert "'*.tif' means no file; there are DEF/" in capsys.readouterr().err


def test_a_listed_file_that_cannot_be_had_makes_the_list_fail(command, archive, capsys):
    archive.pages["/d/"] = '<a href="gone.rec">gone.rec</a>'
    assert exit_code(command, f"{archive.url}d/", "--list") == 1
    assert "1 of 1 files are listed but cannot be had\n  gone.rec" in capsys.readouterr().err


INTERRUPTED = """
import sys, typer
from deepict_dask.cli import fetching, run_guarded
app = typer.Typer()
app.callback()(lambda: None)
fetching.register(app)
run_guarded(lambda: app(["fetch", *sys.argv[1:]], standalone_mode=False))
"""


@pytest.mark.timeout(120)
def test_an_interrupted_fetch_leaves_a_part_that_the_next_run_continues(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(400_000))
    halfway, killed = threading.Event(), threading.Event()

    def stall(handler, path):
        handler.serve(path, limit=150_000)
        halfway.set()
        killed.wait(60)
        handler.close_connection = True

    archive.fail("/f.bin", stall)
    words = [sys.executable, "-c", INTERRUPTED, f"{archive.url}f.bin", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as child:
        assert halfway.wait(60)
        part = tmp_path / "f.bin.part"
        while child.poll() is None and not (part.exists() and part.stat().st_size == 150_000):
            threading.Event().wait(0.01)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    killed.set()
    assert child.returncode == 1
    assert "interrupted; run the same command again to continue" in err
    assert part.read_bytes() == body[:150_000]
    one(archive, tmp_path).check()
    assert archive.gets("/f.bin") == [None, "bytes=150000-"]
    assert tree(tmp_path) == {"f.bin": body}


def test_a_defect_in_one_thread_stops_the_others():
    with Web() as web:
        with pytest.raises(ZeroDivisionError):
            each(web, lambda n: 1 // n, [0, 1, 2], workers=1)
        assert web.stopped


def test_progress_is_lines_on_stderr_where_there_is_no_terminal(
    archive, tmp_path, capsys, monkeypatch
):
    archive.put("/f.bin", some_bytes(2048))
    monkeypatch.setattr("deepict_dask.fetch.progress._SECONDS_BETWEEN_LINES", -1.0)
    fetch(f"{archive.url}f.bin", tmp_path, FetchSettings(patience=QUICK))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "fetch: 2.0 KiB of 2.0 KiB"


def test_the_package_of_fetching_does_not_load_the_engine():
    code = (
        "import sys, deepict_dask.fetch; print([m for m in ('dask', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "[]"
    assert Path(fetching.__file__).name == "fetching.py"
