"""Does the demo pick with context, and say what that is worth?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt

from deepict_dask import demo
from deepict_dask.config import dump_config, load_run_config
from deepict_dask.core.errors import OutputExistsError
from deepict_dask.core.geometry import Box
from deepict_dask.demo import DemoSettings, demo_config, run_demo
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.session import Session
from deepict_dask.synthetic import CONTEXT_CELL

SMALL = replace(
    CONTEXT_CELL, shape=(64, 128, 128), n_vesicles=1, n_mitoribosomes=0, n_dehydrogenases=1
)


def test_each_class_is_picked_from_the_whole_tomogram_and_in_the_cytosol(tmp_path):
    config = demo_config(tmp_path / "tomogram.mrc", tmp_path)
    assert [region.name for region in config.regions] == ["cytosol"]
    assert {pick.name: (pick.class_name, pick.region) for pick in config.pick} == {
        "ribosome_alone": ("ribosome", None),
        "ribosome": ("ribosome", "cytosol"),
        "fas_alone": ("fas", None),
        "fas": ("fas", "cytosol"),
    }


def test_the_two_lists_of_a_class_differ_in_nothing_but_the_context(tmp_path):
    """So a difference of their figures is due to the context alone."""
    picks = {pick.name: pick for pick in demo_config(tmp_path / "t.mrc", tmp_path).pick}
    context = {"name", "region", "contact_mode", "contact_distance", "distances"}
    for name in ("ribosome", "fas"):
        alone, inside = (picks[key].model_dump(exclude=context) for key in (f"{name}_alone", name))
        assert alone == inside


def test_the_config_that_is_left_names_the_same_files_from_anywhere(tmp_path, monkeypatch):
    """Paths in a config are relative to its folder, those of the command line to the user's."""
    monkeypatch.chdir(tmp_path)
    folder = Path("demo")
    written = dump_config(demo_config(folder / "tomogram.mrc", folder))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "run.yaml").write_text(written)
    config = load_run_config(tmp_path / "demo" / "run.yaml")
    assert config.tomograms == tmp_path / "demo" / "tomogram.mrc"
    assert config.output == tmp_path / "demo" / "results"


def test_picks_with_context_are_those_alone_that_lie_in_the_cytosol_found(
    tmp_path, two_workers, monkeypatch
):
    monkeypatch.setattr(demo, "CONTEXT_CELL", SMALL)
    said: list[str] = []
    settings = DemoSettings(n_ribosomes=9, n_fas=4, n_distractors_each=6, seed=5)
    scores = run_demo(Session(two_workers), tmp_path / "demo", settings, say=said.append)
    results = tmp_path / "demo/results/tomogram"
    mask = open_volume(results / "region_cytosol.zarr").read(Box.whole(SMALL.shape)) > 0
    away = distance_transform_cdt(~mask, "chessboard")
    limit = demo_config(tmp_path / "t.mrc", tmp_path).pick[1].contact_distance
    for name in ("ribosome", "fas"):
        alone, inside = (
            read_picks(results / f"picks_{key}/picks.csv")[["z", "y", "x"]].to_numpy()
            for key in (f"{name}_alone", name)
        )
        kept = away[tuple(np.rint(alone).astype(int).T)] <= limit
        assert sorted(alone[kept].tolist()) == sorted(inside.tolist())
        assert scores[name].n_found == len(inside)
        assert scores[f"{name}_alone"].n_found == len(alone)
    assert len([line for line in said if line.startswith(("ribosome ", "fas "))]) == 4
    with pytest.raises(OutputExistsError, match="empty folder"):
        run_demo(Session(two_workers), tmp_path / "demo", settings, say=said.append)
