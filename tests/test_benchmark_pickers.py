"""Do the pickers of the training benchmark find what perfect networks show them?"""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lightning", reason="training needs the extra `train`")

from benchmarks import picker_recipes
from deepict_dask.core.geometry import Box
from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings
from deepict_dask.models.deepfinder import DeepFinder, DeepFinderSettings
from deepict_dask.synthetic import CellSettings, make_cell
from deepict_dask.training.targets import Ball, particle_targets

NETWORKS = {
    "DeepFinder": (DeepFinder(DeepFinderSettings(3, (1, 1, 1))), "sphere", (8, 10)),
    "DeepETPicker": (DeepETPicker(DeepETPickerSettings(3, (1, 1))), "tball", (5, 5)),
}


@pytest.fixture(scope="module")
def cells():
    settings = {"shape": (48, 96, 96), "n_ribosomes": 4, "n_fas": 3, "n_distractors_each": 0,
                "n_vesicles": 0}  # fmt: skip
    return [make_cell(CellSettings(**settings, seed=seed)) for seed in (1, 2)]


def painted(cell, kind, radii, names=("ribosome", "fas")):
    """Return the scores of a network that makes no mistake."""
    shape = cell.settings.shape
    classes = [
        particle_targets(cell.picks_of(name), Ball(radius, kind)).read(Box.whole(shape))
        for name, radius in zip(names, radii, strict=True)
    ]
    background = 1 - np.maximum(*classes)
    return np.stack([background, *classes]).astype(np.float32)


@pytest.mark.parametrize("recipe", list(NETWORKS))
def test_perfect_scores_have_an_f1_of_one_and_those_of_other_classes_of_none(
    cells, recipe, monkeypatch
):
    network, kind, radii = NETWORKS[recipe]
    monkeypatch.setattr(
        picker_recipes, "load_checkpoint", lambda _path: SimpleNamespace(network=network)
    )
    for names, expected in ((("ribosome", "fas"), 1.0), (("fas", "ribosome"), 0.0)):

        def scores(_model, cell, names=names):
            return painted(cell, kind, radii, names)

        monkeypatch.setattr(picker_recipes, "cell_scores", scores)
        found = picker_recipes.picker_f1s("model", cells[:1], cells[1:])
        assert found == {"ribosome F1": expected, "fas F1": expected}


def test_the_smallest_size_is_chosen_on_the_cells_of_the_training(cells):
    """A speck of 30 voxels beside each particle goes by a smallest size above 30."""
    cell = cells[0]
    points = cell.picks_of("ribosome").astype(np.float64)
    far = points + np.array([0, 0, 14])
    found = {
        ("ribosome", 0.0): picker_recipes.Found(
            np.concatenate([points, far]), np.repeat([900, 30], len(points))
        )
    }
    limit = picker_recipes._best_limit([(found, cell)], "ribosome")
    assert limit == (0.0, 50)
    assert picker_recipes._f1(found, cell, "ribosome", limit) == 1.0
