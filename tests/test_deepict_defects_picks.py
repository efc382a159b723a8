"""DeePiCt's known defects in post-processing, evaluation and scripts are absent here, one by one.

Each docstring says what the published program does (commit 4a966293, and its issue tracker); the
test shows that ours does not, by default. With ``--compat deepict`` some are reproduced on purpose;
other files test that.
"""

from __future__ import annotations

import numpy as np
import pytest
import typer
from defect_scenes import SPACING, read, write
from scipy.ndimage import distance_transform_cdt
from typer.testing import CliRunner

from deepict_dask.cli import particles as particle_commands
from deepict_dask.config import PickSettings
from deepict_dask.core.errors import ShapeMismatchError
from deepict_dask.evaluate.picks import score_picks
from deepict_dask.evaluate.plot import draw_curves
from deepict_dask.evaluate.report import EvaluatedTomogram, Evaluation
from deepict_dask.io.picks import read_picks
from deepict_dask.jobs.particle_lists.merge import merge_lists
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session
from deepict_dask.particles.merge import MergeSettings

MODES = ["intersection", "contact", "colocalization"]


def three_bars():
    """Bars of 12, 12 and 6 voxels."""
    score = np.zeros((12, 24, 24), "float32")
    score[2, 2, 2:14] = score[8, 2, 2:14] = score[5, 15, 10:16] = 0.9
    return score


def pick(workers, folder, region=None, score=None, **wishes):
    source = write(folder / "scores.mrc", three_bars() if score is None else score)
    regions = {}
    if region is not None:
        regions["r"] = write(folder / "region.mrc", region)
        wishes["region"] = "r"
    session = Session(workers, chunks=(8, 8, 8), overwrite=True)
    report = pick_particles(session, source, folder / "p", PickSettings(**wishes), regions=regions)
    mask = read(folder / "p/segmentation.zarr")
    assert report.n_picks == len(read_picks(folder / "p/picks.csv"))
    assert report.n_picks == len(read_picks(folder / "p/motl.csv"))
    return report.n_picks, mask


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_region_mask_keeps_nothing_in_every_mode(two_workers, tmp_path, mode):
    """[BUG] Colocalization keeps all clusters, intersection ends with NameError; contact is right.

    (distance_transform_cdt of a volume without zeros is -1, which is below any distance.)
    """
    assert distance_transform_cdt(np.ones((3, 3))).max() == -1
    n, mask = pick(two_workers, tmp_path, np.zeros((12, 24, 24), "int8"), contact_mode=mode)
    assert (n, mask.any()) == (0, False)


def test_an_intersection_that_leaves_nothing_is_an_empty_result(two_workers, tmp_path):
    """[BUG] NameError: clusters_labeled_by_size, where mask and segmentation do not meet."""
    region = np.zeros((12, 24, 24), "int8")
    region[0] = 1
    n, mask = pick(two_workers, tmp_path, region, contact_mode="intersection")
    assert (n, mask.any()) == (0, False)


@pytest.mark.parametrize("mode", MODES)
def test_no_cluster_within_the_size_limits_is_an_empty_result(two_workers, tmp_path, mode):
    """[BUG] Colocalization ends with IndexError if the size limits leave no cluster."""
    region = np.ones((12, 24, 24), "int8")
    n, mask = pick(two_workers, tmp_path, region, contact_mode=mode, min_size=13)
    assert (n, mask.any()) == (0, False)


def test_scores_below_the_threshold_everywhere_are_an_empty_result(two_workers, tmp_path):
    """A map below the threshold writes a motl of 0 bytes, on which the evaluation then ends."""
    n, mask = pick(two_workers, tmp_path, threshold=0.95)
    assert (n, mask.any()) == (0, False)


@pytest.mark.parametrize("inside", [7, 0.25, "two values", 255])
@pytest.mark.parametrize("mode", MODES)
def test_any_value_above_zero_is_inside_a_region(two_workers, tmp_path, mode, inside):
    """[BUG] Mask values multiply labels: 2 is another cluster, 0.25 is 0, contact finds others."""
    region = np.zeros((12, 24, 24), "float32")
    region[:4, :, :20] = 1
    expected = pick(two_workers, tmp_path, region, contact_mode=mode, contact_distance=1)
    assert expected[0] == 1
    if inside == "two values":  # the border between them cuts a bar
        region[:, :, 8:] *= 2
    else:
        region *= inside
    region = region.astype("uint8") if inside == 255 else region
    found = pick(two_workers, tmp_path, region, contact_mode=mode, contact_distance=1)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_region_mask_of_another_shape_is_refused_not_cut(two_workers, tmp_path):
    """Mask and map are cut to the smaller shape without a word, and so is the output."""
    with pytest.raises(ShapeMismatchError, match="same binning"):
        pick(two_workers, tmp_path, np.ones((12, 24, 20), "int8"))


def test_a_list_of_scores_cut_to_a_smaller_mask_has_the_centre_of_the_tomogram(
    two_workers, tmp_path
):
    """RELION counts from the tomogram's centre, of which the cut map knows nothing."""
    region = np.ones((10, 24, 22), "int8")
    n, _ = pick(two_workers, tmp_path, region, compat="deepict", contact_mode="intersection")
    assert n == 3
    star = read_picks(
        tmp_path / "p/picks.star", tomogram_shape=(12, 24, 24), voxel_spacing_angstrom=SPACING
    )
    expected = read_picks(tmp_path / "p/picks.csv")
    np.testing.assert_allclose(
        sorted(star[["z", "y", "x"]].to_numpy().tolist()),
        sorted(expected[["z", "y", "x"]].to_numpy().tolist()), atol=1e-4,
    )  # fmt: skip


def evaluated(folder, predicted, true):
    (folder / "pred.csv").write_text(predicted)
    (folder / "true.csv").write_text(true)
    found, truth = read_picks(folder / "pred.csv"), read_picks(folder / "true.csv")
    zyx = ["z", "y", "x"]
    score = score_picks(found[zyx], truth[zyx], 3, scores=found["score"].to_numpy())
    evaluation = Evaluation((EvaluatedTomogram("TS_1", score),))
    assert draw_curves(evaluation, ".png").startswith(b"\x89PNG")
    return score


def test_an_evaluation_without_false_positives_is_perfect(tmp_path):
    """[crash] ValueError in generate_performance_plots where every pick is right."""
    score = evaluated(tmp_path, "0.9,5,5,5\n0.8,9,9,9\n", "5,5,5\n9,9,9\n")
    assert (score.false_positives, score.precision, score.recall, score.auprc) == (0, 1, 1, 1)


def test_an_evaluation_of_an_empty_list_is_zero(tmp_path):
    """[crash] An empty motl ends the evaluation (len of a number)."""
    score = evaluated(tmp_path, "", "5,5,5\n9,9,9\n")
    assert (score.n_found, score.false_negatives) == (0, 2)
    assert (score.precision, score.recall, score.f1, score.auprc) == (0, 0, 0, 0)


def test_an_evaluation_against_an_empty_list_is_zero(tmp_path):
    score = evaluated(tmp_path, "0.9,5,5,5\n", "")
    assert (score.false_positives, score.precision, score.recall) == (1, 0, 0)


def test_lists_of_four_columns_are_evaluated(tmp_path):
    """[crash] KeyError: the merge script reads score,x,y,z, the evaluation does not."""
    score = evaluated(tmp_path, "0.1,9,9,9\n0.9,5,5,5\n", "5,5,5\n")
    assert (score.true_positives, score.best_score) == (1, 0.9)


def test_picks_are_ranked_by_score_not_by_their_place_in_the_file(tmp_path):
    """Precision and recall follow the file's raster order, so the curve means nothing."""
    better = evaluated(tmp_path, "0.9,5,5,5\n0.1,50,50,50\n", "5,5,5\n")
    same = evaluated(tmp_path, "0.1,50,50,50\n0.9,5,5,5\n", "5,5,5\n")
    assert better.auprc == same.auprc == 1


def test_a_second_pick_on_a_taken_particle_is_a_false_positive(tmp_path):
    """Such picks count neither for nor against, so that precision looks better than it is."""
    score = evaluated(tmp_path, "0.9,5,5,5\n0.8,5,5,6\n", "5,5,5\n")
    assert (score.true_positives, score.false_positives, score.precision) == (1, 1, 0.5)


def test_duplicates_of_the_first_pick_are_merged_as_all_others(tmp_path):
    """[BUG] The first kept point is compared unscaled, so duplicates of it survive."""
    (tmp_path / "a.csv").write_text("50,60,70\n20,20,20\n50,60,70\n")
    (tmp_path / "b.csv").write_text("50,60,70\n20,20,20\n51,60,70\n")
    lists = [tmp_path / "a.csv", tmp_path / "b.csv"]
    merge_lists(lists, tmp_path / "m.csv", MergeSettings(axes=(15, 9, 9)))
    merged = read_picks(tmp_path / "m.csv")[["x", "y", "z"]].to_numpy().tolist()
    assert sorted(merged) == [[20, 20, 20], [50, 60, 70]]


def test_no_pick_is_lost_near_the_unscaled_place_of_the_first(tmp_path):
    """[BUG] The other half of it: what lies at axes times the first position is dropped."""
    (tmp_path / "a.csv").write_text("5,5,5\n45,45,75\n")  # (5, 5, 5) times (9, 9, 15)
    settings = {"axes": (15, 9, 9)}
    merge_lists([tmp_path / "a.csv"], tmp_path / "m.csv", MergeSettings(**settings))
    assert len(read_picks(tmp_path / "m.csv")) == 2
    published = MergeSettings(**settings, compat="deepict")
    merge_lists([tmp_path / "a.csv"], tmp_path / "n.csv", published)
    assert len(read_picks(tmp_path / "n.csv")) == 1


def painted(folder, *options):
    (folder / "p.csv").write_text("score,x,y,z\n959,4,3,2\n")
    app = typer.Typer()
    particle_commands.register(app)
    names = [str(folder / "p.csv"), str(folder / "m.zarr"), "--radius", "1", "--overwrite"]
    more = ["--workers", "1", "--no-progress", "--voxel-spacing-angstrom", "10"]
    result = CliRunner().invoke(app, ["to-mask", *names, *more, *options])
    assert result.exit_code == 0, (result.output, result.exception)
    return read(folder / "m.zarr")


def test_the_shape_of_a_mask_is_the_one_that_its_help_names(tmp_path):
    """[BUG] -shape is documented as x y z and used as z y x: 900 900 500 gives 900 slices."""
    mask = painted(tmp_path, "--shape", "5,6,7")
    assert mask.shape == (5, 6, 7)
    assert np.argwhere(mask).mean(axis=0).tolist() == [2, 3, 4]
    help_text = CliRunner().invoke(_single(particle_commands.to_mask), ["--help"]).output
    assert "Z,Y,X" in help_text


def test_the_value_of_a_mask_is_the_one_that_was_given(tmp_path):
    """[BUG] -value arrives as a text, so that the score is painted instead."""
    mask = painted(tmp_path, "--shape", "5,6,7", "--value", "3")
    assert np.unique(mask).tolist() == [0, 3]


def _single(command):
    app = typer.Typer()
    app.command()(command)
    return app
