"""What a killed run left of an output goes with the next run, and only what it left."""

from __future__ import annotations

import multiprocessing
import os
import platform

import pytest
from staging_scenes import ONE_KEY, OTHER_KEY, make

from deepict_dask.engine import StagedOutput, staging
from deepict_dask.io.replace import replace_file


def test_what_a_killed_program_left_of_a_file_goes_with_the_next_one(tmp_path):
    target = tmp_path / "stages.json"
    dead, alive, foreign = (
        tmp_path / f".stages.json.{name}.tmp"
        for name in (
            f"{platform.node()}.{2**22 + 1}",  # beyond the largest number of a process
            f"{platform.node()}.{os.getppid()}",
            f"another-host.{2**22 + 1}",
        )
    )
    for path in (dead, alive, foreign):
        path.write_text("half")
    replace_file(target, "{}")
    assert target.read_text() == "{}"
    assert not dead.exists()
    assert alive.exists()
    assert foreign.exists()


def run_killed_at_step(number, work):
    """Run something in a process of its own that ends for good before a step of the file system.

    Returns whether it got as far as that step.
    """

    def target():
        steps = iter(range(number))

        def killed_before(call):
            def step(*arguments, **options):
                if next(steps, None) is None:
                    os._exit(9)
                return call(*arguments, **options)

            return step

        for module, name in ((os, "replace"), (os, "close"), (staging, "remove")):
            setattr(module, name, killed_before(getattr(module, name)))
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(60)
    return process.exitcode == 9


@pytest.mark.parametrize("has_old", [False, True])
def test_whenever_a_run_is_killed_the_next_one_leaves_the_output_alone_in_its_folder(
    tmp_path, has_old
):
    number, was_killed, n_named = 0, True, 0
    while was_killed:
        folder = tmp_path / str(number)
        path = folder / "picks"
        if has_old:
            make(path, text="old")
        was_killed = run_killed_at_step(
            number, lambda path=path: make(path, OTHER_KEY, text="new", overwrite=True)
        )
        if path.exists() and (path / "picks.csv").read_text() == "new":
            n_named += was_killed
            StagedOutput(path, OTHER_KEY).clear_remains()
        else:
            make(path, OTHER_KEY, text="new", overwrite=True)
        assert [p.name for p in folder.iterdir()] == ["picks"]
        assert (path / "picks.csv").read_text() == "new"
        number += 1
    assert number >= 5
    assert n_named >= 2


def test_remains_are_left_alone_while_another_run_makes_the_output(tmp_path):
    make(tmp_path / "picks")
    with StagedOutput(tmp_path / "picks", OTHER_KEY, overwrite=True) as staged:
        (staged.folder / "half").write_text("half")
        StagedOutput(tmp_path / "picks", ONE_KEY).clear_remains()
        assert (staged.folder / "half").exists()
