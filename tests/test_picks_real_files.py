"""Every particle list among real files and golden data is read; what is none is refused as such.

Oracles: how many particles each format's own library, or a count of lines, finds in a file; a
table of the files that hold no particles, with the words that say what they are.
"""

import re
from xml.etree import ElementTree as ET

import dynamotable
import emfile
import imodmodel
import numpy as np
import openpyxl
import pytest
import starfile
from picks_lists import SHARED, shared, zyx
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import PicksFormatError, VolumeFormatError
from deepict_dask.io.picks import FORMATS, read_picks, write_picks

ENDINGS = {ending for kind in FORMATS.values() for ending in kind.endings}
FRAME = {"voxel_spacing_angstrom": 10.0, "tomogram_shape": (5000, 5000, 5000)}

LISTS = (
    "data/mod/cryocat_correct111.mod",
    "data/mod/imodmodel_multiple_objects_example.mod",
    "data/mod/imodmodel_point_sizes_example.mod",
    "data/mod/imodmodel_two_contour_example.mod",
    "data/other/motl_ribosome_t126.em",
    "data/other/object_list_tomo0.xml",
    "data/star/bin1_1deg_500.star",
    "data/star/pytom_example_starfile.star",
    "data/star/relion_3.0.star",
    "data/star/relion_3.1_optics2.star",
    "data/tbl/b4_motl_CR_tm_topbott_clean600_1_dynamo.tbl",
    "golden/deepetpicker/mpnms/onecls_Coords_All.coords",
    "golden/deepetpicker/mpnms/onecls_Coords_withArea.coords",
    "golden/deepetpicker/picks_b72_p12_Coords_All.coords",
    "golden/deepetpicker/picks_b72_p12_Coords_withArea.coords",
    "golden/deepetpicker/targets/after_coords_gen.coords",
    "golden/deepetpicker/targets/input.coords",
    "golden/deepfinder/cluster_r5_objlist_raw.xlsx",
    "golden/deepfinder/cluster_r5_objlist_raw.xml",
    "golden/deepfinder/cluster_r5_objlist_thr_50_100.xml",
    "golden/deepfinder/targets/objl.xml",
    "golden/deepfinder/targets/objl_oriented.xlsx",
    "golden/deepfinder/targets/objl_oriented.xml",
    "golden/deepict/evaluation/merged_elliptic_9_9_15.csv",
    "golden/deepict/evaluation/pred_score_xyz.csv",
    "golden/deepict/evaluation/true_xyz.csv",
    "golden/deepict/inputs/true_blobs_first50_xyz.csv",
    "golden/deepict/inputs/true_blobs_xyz.csv",
    "golden/deepict/inputs/true_blobs_xyzr_exact.csv",
    "golden/deepict/postproc/nomask_c1_min50/motl_59.csv",
    "golden/deepict/postproc/nomask_c3_min300_max1500_border/motl_28.csv",
    "golden/deepict/postproc/region_colocalization_r8_c1_min100/motl_12.csv",
    "golden/deepict/postproc/region_contact_c1_min100/motl_9.csv",
    "golden/deepict/postproc/region_intersection_c1_min100/motl_8.csv",
)

TOMOGRAMS = r"rlnCoordinateX, found blocks \[.*'global'\] of tomograms or tilt series"
NO_POSITIONS = "expected a header that names x, y and z once"
OTHER_JSON = "expected picks of copick, with a list of points, found other JSON"
NO_LISTS = {
    "data/other/annotation_foo-1.0.json": r"the CryoET Data Portal says .* are in foo-1\.0\.ndjson",
    "data/other/ribosome_subtomogram_t126.em": r"found 48 x 48 x 48 .* no motl \(a volume\?\)",
    "data/star/R5_tutorial_run_tomograms.star": TOMOGRAMS,
    "data/star/r5_project_tomo200528_107.star": r"\['tomo200528_107'\] of the images of a tilt s",
    "data/star/r5_project_tomograms.star": TOMOGRAMS,
    "data/star/warp2_matching_tomograms.star": TOMOGRAMS,
    "golden/deepetpicker/ckpt_hyper_parameters_args.json": OTHER_JSON,
    "golden/deepetpicker/ckpt_state_dict_keys.txt": "line 2: expected 5 columns .* found 2",
    "golden/deepetpicker/onecycle_60epochs_lr_beta1.json": OTHER_JSON,
    # label z y x size, without a header: five columns are class x y z value in other programs
    "golden/deepfinder/cluster_r5_objlist_raw.txt": "found 5 columns; add a header line",
    "golden/deepfinder/cluster_truth.json": OTHER_JSON,
    "golden/deepict/configs/metadata.csv": NO_POSITIONS,
    "golden/deepict/configs/metadata_eval.csv": NO_POSITIONS,
    "golden/deepict/evaluation/pp_statistics_nomask_c1_min50.csv": NO_POSITIONS,
    "golden/deepict/evaluation/pp_statistics_region_intersection_c1_min100.csv": NO_POSITIONS,
    "golden/deepict/evaluation/reference_pr.json": OTHER_JSON,
    "golden/deepict/filaments/config.txt": NO_POSITIONS,
    "golden/deepict/filaments/fil_coord.csv": "DeePiCt's list of filaments, whose positions are in",
    "golden/deepict/filaments/log.txt": "line 2: expected 4 columns .* found 3",
    "golden/deepict/prediction_partition_golden.json": OTHER_JSON,
    "golden/deepict/prediction_partition_golden_corner.json": OTHER_JSON,
    "golden/deepict/prediction_partition_golden_crop.json": OTHER_JSON,
    "golden/deepict/prediction_partition_golden_region.json": OTHER_JSON,
    "golden/deepict/spectrum/input_spectrum.tsv": NO_POSITIONS,
    "golden/deepict/spectrum/target_large_spectrum.tsv": NO_POSITIONS,
    "golden/deepict/spectrum/target_spectrum.tsv": NO_POSITIONS,
    "golden/deepict/training_partition_kept_patches.json": OTHER_JSON,
}  # fmt: skip


def n_particles(path):
    """Count the particles of a file without our readers."""
    match path.suffix:
        case ".star":
            blocks = starfile.read(path, always_dict=True).values()
            return next(len(block) for block in blocks if "rlnCoordinateX" in block)
        case ".tbl":
            return len(dynamotable.read(path))
        case ".em":
            return emfile.read(path)[1].shape[1]
        case ".mod":
            return len(imodmodel.read(path))
        case ".xml":
            return len(ET.parse(path).getroot())
        case ".xlsx":
            return openpyxl.load_workbook(path).active.max_row - 1
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    return len(lines) - bool(re.match("[a-z]", lines[0]))


def in_order(picks, path):
    """Return positions in the order of the file; sorted for CSV, which is ordered by score."""
    return zyx(picks)[np.lexsort(zyx(picks).T)] if path.suffix == ".csv" else zyx(picks)


def test_every_file_with_an_ending_of_particle_lists_is_in_one_of_the_tables(real_files, golden):
    found = {
        path.relative_to(SHARED).as_posix()
        for folder in (real_files, golden)
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
    }
    assert found == {*LISTS, *NO_LISTS}


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_read_with_all_its_particles(name):
    path = shared(SHARED / name)
    picks = read_picks(path, voxel_spacing_angstrom=10)
    assert len(picks) == n_particles(path) > 0
    assert np.isfinite(zyx(picks)).all()


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_equal_once_written_and_read_again(tmp_path, name):
    path = shared(SHARED / name)
    picks = read_picks(path, voxel_spacing_angstrom=10)
    # a STAR file names tomograms, whether the list does or not
    named = {} if "tomogram_name" in picks else {"tomogram_name": "TS_01"}
    write_picks(picks, tmp_path / path.name, **FRAME, **named)
    again = read_picks(tmp_path / path.name, **FRAME)
    np.testing.assert_allclose(in_order(again, path), in_order(picks, path), atol=6e-4)


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_converted_by_the_command(tmp_path, name):
    path, out = shared(SHARED / name), tmp_path / "out.csv"
    words = ["picks", "convert", str(path), str(out), "--voxel-spacing-angstrom", "10"]
    ended = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ended.exit_code == 0
    assert len(read_picks(out)) == n_particles(path)


@pytest.mark.parametrize("name", NO_LISTS)
def test_every_file_without_particles_is_refused_and_said_what_it_is(name):
    path = shared(SHARED / name)
    with pytest.raises(PicksFormatError, match=NO_LISTS[name]) as refusal:
        read_picks(path, **FRAME)
    assert str(refusal.value).startswith(str(path))


@pytest.mark.parametrize("name", [name for name in LISTS if not name.endswith(".em")])
def test_info_says_how_a_particle_list_is_read(name):
    path = shared(SHARED / name)
    with pytest.raises(VolumeFormatError, match=r"particle lists: `deepict-dask picks convert`"):
        CliRunner().invoke(app, ["info", str(path)], catch_exceptions=False)


def test_info_shows_em_files_of_either_kind_and_says_which_is_a_list(real_files):
    for name, odd in (("motl_ribosome_t126.em", True), ("ribosome_subtomogram_t126.em", False)):
        shown = CliRunner().invoke(app, ["info", str(real_files / "other" / name)])
        assert shown.exit_code == 0
        assert ("looks like a motive list" in shown.stdout) is odd
