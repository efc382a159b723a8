"""Is what the program says where it should be, once, and in the form that was asked for?"""

from __future__ import annotations

import json
import logging
import sys
import threading
from importlib.util import find_spec

import mrcfile
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from deepict_dask import cli
from deepict_dask.cli import app, messages
from deepict_dask.engine import progress as engine_progress
from deepict_dask.engine.progress import Progress, Reached
from deepict_dask.jobs.runs.in_turn import working_on
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

log = logging.getLogger("deepict_dask")


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    messages.end()
    assert (root.level, root.handlers) == (level, handlers)


@pytest.fixture
def said(tmp_path, capsys):
    """Begin to say things with some options; returns the lines of screen, results and file."""
    file = tmp_path / "logs" / "a.log"

    def begin(*, level="warning", quiet=False, form="text"):
        messages.begin(level=level, quiet=quiet, form=form, file=file)

    def lines():
        found = capsys.readouterr()
        return found.err.splitlines(), found.out.splitlines(), file.read_text().splitlines()

    begin.lines, begin.file = lines, file
    return begin


@pytest.fixture
def scene(tmp_path):
    """Two tomograms with a spacing that is not the model's, the model, and a config."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        with mrcfile.new(tmp_path / f"{name}.mrc") as mrc:
            mrc.set_data(rng.normal(size=(32, 32, 32)).astype("float32"))
            mrc.voxel_size = 5.0
    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    save_model(tmp_path / "m.safetensors", network, class_names=["a"], voxel_spacing_angstrom=10.0)
    (tmp_path / "table.csv").write_text("name,tomogram\nA,a.mrc\nB,b.mrc\n")
    (tmp_path / "run.yaml").write_text(
        "tomograms: table.csv\noutput: results\nchunks: [16, 32, 32]\n"
        "segment: [{model: m.safetensors}]\npick: [{threshold: 0.4}]\n"
        "cluster: {kind: threads, workers: 1, memory: 2GiB}\n"
    )
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


# screen, results and file


def test_results_and_messages_are_apart_and_the_file_has_both_with_times(said):
    said()
    messages.say("59 picks in out")
    log.warning("%s is odd", "a.mrc")
    log.info("nobody asked for this")
    messages.news("dashboard: http://x")
    err, out, file = said.lines()
    assert err == ["WARNING: a.mrc is odd", "dashboard: http://x"]
    assert out == ["59 picks in out"]
    assert [line.split(" ", 2)[2] for line in file] == [
        "INFO: 59 picks in out", "WARNING: a.mrc is odd", "INFO: dashboard: http://x",
    ]  # fmt: skip


def test_quiet_leaves_errors_on_the_screen_and_everything_in_the_file(said):
    said(quiet=True)
    messages.say("59 picks in out")
    log.warning("odd")
    log.error("wrong")
    assert said.lines()[:2] == (["ERROR: wrong"], [])
    assert len(said.file.read_text().splitlines()) == 3


def test_the_same_warning_is_said_once_and_other_lines_as_often_as_they_come(said):
    said(level="info")
    for _ in range(3):
        log.warning("%s is odd", "a.mrc")
        log.info("again")
    log.warning("%s is odd", "b.mrc")
    err, _, file = said.lines()
    assert err.count("WARNING: a.mrc is odd") == 1
    assert (err.count("INFO: again"), len(err), len(file)) == (3, 5, 5)
    said()  # another command
    log.warning("%s is odd", "a.mrc")
    assert said.lines()[0] == ["WARNING: a.mrc is odd"]


def test_json_lines_have_time_level_logger_message_and_the_tomogram_in_work(said):
    said(form="json")
    with working_on("TS_1"):
        log.warning("ä %d", 3)
    messages.news("dashboard")
    log.error("outer", exc_info=ValueError("inner"))
    err, _, file = said.lines()
    assert err == file
    first, second, third = (json.loads(line) for line in err)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning", "logger": "deepict_dask", "message": "ä 3", "tomogram": "TS_1",
    }  # fmt: skip
    assert "tomogram" not in second
    assert "ValueError: inner" in third["traceback"]


def test_threads_name_their_own_tomogram(said):
    said(form="json")
    barrier = threading.Barrier(2)

    def work(name):
        with working_on(name):
            barrier.wait()
            log.warning("of %s", name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("A", "B")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for line in said.lines()[0]]
    assert {one["message"]: one["tomogram"] for one in found} == {"of A": "A", "of B": "B"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--log-format", "xml"], "--log-format: expected text or json, found 'xml'"),
        (["--log-level", "loud"], "--log-level: expected debug to error, found 'loud'"),
        (["--log-file", "{file}/a.log"], "file/a.log: cannot be written ("),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, options, says):
    (tmp_path / "file").touch()
    words = [word.format(file=tmp_path / "file") for word in options]
    assert says in str(run(*words, "doctor").exception)


@pytest.mark.parametrize("form", ["text", "json"])
def test_why_a_command_ends_is_the_last_line_of_screen_and_file(
    tmp_path, capsys, monkeypatch, form
):
    file = tmp_path / "a.log"
    words = ["--quiet", "--log-format", form, "--log-file", str(file), "info", "nowhere.mrc"]
    monkeypatch.setattr(sys, "argv", ["deepict-dask", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code != 0
    (line,) = capsys.readouterr().err.splitlines()
    last = file.read_text().splitlines()[-1]
    if form == "json":
        assert line == last
        assert json.loads(line)["level"] == "error"
        assert "nowhere.mrc" in json.loads(line)["message"]
    else:
        assert line.startswith("error: ")
        assert last.endswith("ERROR: " + line.removeprefix("error: "))


# runs


def test_a_run_begins_with_its_plan_and_ends_with_what_was_made(scene):
    done = run("run", scene / "run.yaml")
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    results = scene / "results"
    first = next(one for one in done.stderr.splitlines() if not one.startswith("dashboard: "))
    assert first == (
        f"plan: scores_m.zarr, picks_0 of 2 tomograms on 1 worker of 2.0 GiB, in {results}"
    )
    assert last.startswith("made: 2 tomograms of 2 (")
    assert f" in picks_0) in {results} in " in last
    assert last.endswith(f"look at {results / 'report.html'}")
    assert (results / "report.html").is_file()


def test_a_quiet_run_says_nothing_and_its_log_file_all(scene):
    file = scene / "run.log"
    done = run("--quiet", "--log-file", file, "run", scene / "run.yaml")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    said = file.read_text()
    assert said.count("was trained at 10 Å") == 2
    assert said.index("plan: ") < said.index("was trained at 10 Å") < said.index("made: ")
    assert (scene / "results/summary.csv").is_file()


def test_standard_error_of_a_json_run_is_json_and_has_warnings_and_progress_by_tomogram(scene):
    done = run("--log-format", "json", "run", scene / "run.yaml")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    told = [one for one in lines if "was trained at 10 Å" in one["message"]]
    assert sorted(one["tomogram"] for one in told) == ["A", "B"]
    stages = {(one.get("tomogram"), one["stage"]) for one in lines if "stage" in one}
    assert stages >= {(name, stage) for name in "AB" for stage in ("statistics", "segment")}
    ended = next(one for one in lines if one.get("stage") == "segment")
    assert ended["done"] == ended["total"]
    assert ended["memory_bytes"] > 1 << 20


@pytest.mark.parametrize("command", ["segment", "pick", "train"])
def test_other_commands_begin_with_a_plan_too(scene, command):
    source, scores, model = scene / "a.mrc", scene / "s.zarr", scene / "m.safetensors"
    (scene / "train.yaml").write_text(
        "tomograms: absent.csv\noutput: model\nclasses: {a: {picks: a, radius_nm: 3}}\n"
    )
    words = {
        "segment": [source, scores, "--model", model, "--cluster", "threads", "--workers", 1],
        "pick": [source, scene / "p", "--threshold", 9, "--cluster", "threads", "--workers", 1],
        "train": [scene / "train.yaml"],
    }[command]
    done = run(command, *words)
    first = next(one for one in done.stderr.splitlines() if not one.startswith("dashboard: "))
    assert first.startswith("plan: ")
    assert "plan: " not in run(command, *words, "--overwrite", "--no-progress").output
    last = {"segment": f"wrote {scores}", "pick": f"0 picks in {scene / 'p'}"}.get(command, "")
    assert done.stdout.rstrip("\n").endswith(last)


# progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_progress, "time", clock)
    return clock


def test_a_line_says_rate_time_left_and_memory(clock):
    lines = []
    watch = Progress(shown=False, tell=lines.append, memory=lambda: 5 << 20).named("TS_1")
    with watch.stage("segment", 100, 20) as advance:
        clock.now += 12
        advance(24)
    assert list(map(str, lines)) == [
        "TS_1: segment: continuing, 20 of 100 blocks are done",
        "TS_1: segment: 44 of 100 blocks, 2 a second, 28 s left, workers have up to 5.0 MiB",
    ]
    assert lines[1].facts == {
        "stage": "segment", "tomogram": "TS_1", "done": 44, "total": 100, "per_s": 2.0,
        "left_s": 28.0, "memory_bytes": 5 << 20,
    }  # fmt: skip


def test_a_long_stage_tells_a_line_in_ten_seconds_whatever_its_blocks(clock):
    lines = []
    with Progress(shown=False, tell=lines.append).stage("segment", 100_000) as advance:
        for _ in range(100_000):
            clock.now += 0.01
            advance(1)
    assert 90 <= len(lines) <= 101
    assert lines[-1].done == 100_000


def test_a_thousand_short_stages_fill_no_log(clock):
    lines = []
    whole = Progress(shown=False, tell=lines.append)
    for i in range(1000):
        with whole.named(f"TS_{i}").stage("label", 1) as advance:
            clock.now += 0.1
            advance(1)
    assert [one.tomogram for one in lines[:20]] == [f"TS_{i}" for i in range(20)]
    assert 25 <= len(lines) <= 31  # 20 at once, then one in 10 s


def test_memory_is_looked_at_now_and_then_only(clock):
    looks = []
    watch = Progress(shown=False, tell=lambda _line: None, memory=lambda: looks.append(1))
    for _ in range(10):
        with watch.stage("label", 1) as advance:
            clock.now += 0.5
            advance(1)
    assert len(looks) == 3


def test_without_a_terminal_lines_are_printed_and_nothing_where_none_are_wanted(capsys):
    with Progress().stage("label", 2) as advance:
        advance(2)
    assert capsys.readouterr().err.startswith("label: 2 of 2 blocks, ")
    with Progress(shown=False).stage("label", 2, 1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_are_bars_with_rate_and_memory_and_the_file_has_lines(
    said, capsys, monkeypatch
):
    from types import SimpleNamespace

    said()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    workers = SimpleNamespace(memory_used=lambda: 7 << 20)
    with messages.progress_of(workers, shown=True).named("TS_1").stage("segment", 2) as advance:
        advance(2)
    err, _, file = said.lines()
    shown = "\n".join(err)
    assert "TS_1: segment" in shown
    assert "workers have up to 7.0 MiB" in shown
    assert "2 of 2 blocks" not in shown
    assert "TS_1: segment: 2 of 2 blocks" in "\n".join(file)
    assert capsys.readouterr().out == ""


def test_the_dashboard_is_told_once_and_not_where_no_progress_is_wanted(scene):
    words = ("pick", scene / "a.mrc", scene / "p", "--threshold", 9, "--workers", 1)
    first = run(*words)
    assert first.exit_code == 0, first.output
    has_dashboard = find_spec("bokeh") is not None
    assert first.stderr.count("dashboard: http://") == has_dashboard
    assert "dashboard: " not in run(*words, "--overwrite", "--no-progress").output


def test_options_before_a_command_hold_for_that_command_only():
    assert run("--quiet", "models", "list").stdout == ""
    assert run("models", "list").stdout != ""


def test_a_time_is_given_in_the_unit_that_is_read_at_once():
    lines = [str(Reached("a", 0, 1, per_s=1 / seconds)) for seconds in (1, 75, 86400)]
    ends = [line.split(", ")[2] for line in lines]
    assert ends == ["1 s left", "1 min 15 s left", "24 h 0 min left"]


def test_without_options_say_prints_and_nothing_fails(capsys):
    messages.say("a")
    messages.news("b")
    assert capsys.readouterr() == ("a\n", "b\n")
    assert isinstance(app, typer.Typer)
