"""Several regions and contacts on the command line."""

from __future__ import annotations

import contextlib
import io

import pandas as pd
import pytest
from region_scenes import VOXEL_NM, points_at, region_mask, store

from deepict_dask import cli

THREADS = ("--cluster", "threads", "--no-progress")


def run(*arguments):
    """Run a command line in this process; return its exit code and what it said."""
    out = io.StringIO()
    with (
        pytest.raises(SystemExit) as end,
        contextlib.redirect_stderr(out),
        contextlib.redirect_stdout(out),
    ):
        cli.run_guarded(lambda: cli.app([*map(str, arguments)], standalone_mode=False))
    return end.value.code, out.getvalue()


@pytest.fixture
def files(tmp_path):
    """A score map of three points and two masks; returns the beginning of a command line."""
    score = points_at((8, 8, 32), (4, 4, 2), (4, 4, 10), (4, 4, 18))
    first, second = (region_mask(score.shape, "empty", 0) for _ in range(2))
    first[:, :, 8:24], second[:, :, 24:] = 1, 1
    for name, volume in (("s", score), ("er", first), ("mito", second)):
        store(tmp_path / f"{name}.zarr", volume)
    return ("pick", tmp_path / "s.zarr", tmp_path / "o")


def test_the_command_line_takes_several_regions_and_contacts(files, tmp_path):
    code, said = run(
        *files, "--region-mask", tmp_path / "er.zarr", "--contact-mode", "contact",
        "--region", f"mito={tmp_path / 'mito.zarr'}", "--contact", "mito:colocalization:10nm",
        "--contact", "region:colocalization:3", "--distance-limit-nm", "30", *THREADS,
    )  # fmt: skip
    assert (code, said.splitlines()[-1]) == (0, f"1 picks in {tmp_path / 'o'}")
    (row,) = pd.read_parquet(tmp_path / "o/clusters.parquet").to_dict("records")
    assert (row["x"], row["n_in_region"], row["n_in_mito"]) == (18, 1, 0)
    assert row["distance_region_nm"] == 0
    assert row["distance_mito_nm"] == pytest.approx(6 * VOXEL_NM, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--region", "er"], ("--region", "NAME=FILE", "'er'")),
        (["--region", "my er={er}"], ("--region", "letters", "'my er=")),
        (["--region", "er={er}", "--region", "er={mito}"], ("two of 'er'",)),
        (["--region-mask", "{er}", "--region", "region={mito}"], ("two of 'region' (the name of",)),
        (["--region", "er={er}", "--contact", "mito:contact"], ("(er)", "'mito'")),
        (["--contact", "er:contact"], ("(none is)", "'er'")),
        (["--region", "er={er}", "--contact", "er:touch"], ("NAME:MODE", "'er:touch'")),
        (["--region", "er={er}", "--contact", "er"], ("NAME:MODE", "'er'")),
        (["--region", "er={er}", "--contact", "er:colocalization:5um"], ("25nm", "'5um'")),
        (["--region", "er={er}", "--contact", "er:colocalization:-5"], ("25nm", "'-5'")),
        (["--region", "er={er}", "--contact", "er:colocalization"], ("distance", "found 0")),
        (["--region", "er={er}", "--contact", "er:contact:5nm"], ("distance", "with contact")),
        (["--region", "er={er}", "--distance-limit-nm", "0"], ("distance_limit_nm", "found 0")),
        (["--region", "er={er}", "--contact-mode", "contact"], ("--region-mask", "--contact NAME")),
        (["--region", "er=nothing.mrc"], ("nothing.mrc", "check the path")),
    ],
)  # fmt: skip
def test_wrong_regions_are_refused_in_one_message(files, tmp_path, options, says):
    paths = {name: str(tmp_path / f"{name}.zarr") for name in ("er", "mito")}
    code, said = run(*files, *(option.format(**paths) for option in options), *THREADS)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in says:
        assert word in said
    assert not (tmp_path / "o").exists()
