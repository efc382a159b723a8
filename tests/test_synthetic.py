"""Is a synthetic cell what its settings say?"""

from __future__ import annotations

import math
from dataclasses import replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
from scipy import fft
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, label
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from deepict_dask.core.errors import ConfigError, OutputExistsError
from deepict_dask.synthetic import (
    CONTEXT_CELL,
    DISTRACTOR_NAMES,
    LABELS,
    MATRIX_NAMES,
    PARTICLE_NAMES,
    CellSettings,
    make_cell,
    write_cell,
)
from deepict_dask.synthetic.imaging import coloured_noise
from deepict_dask.synthetic.placement import place_particles
from deepict_dask.synthetic.shapes import SHAPES

SMALL = CellSettings(
    shape=(64, 128, 128), n_ribosomes=9, n_fas=4, n_distractors_each=6, n_vesicles=1, seed=5
)
LARGER = replace(SMALL, shape=(96, 192, 192))
WITH_MITOCHONDRION = replace(LARGER, n_mitochondria=1, n_mitoribosomes=3, n_dehydrogenases=2)


@pytest.fixture(scope="module")
def cell():
    return make_cell(SMALL)


@pytest.fixture(scope="module")
def context_cell():
    return make_cell(WITH_MITOCHONDRION)


@pytest.fixture(scope="module")
def clean_context_cell():
    return make_cell(replace(WITH_MITOCHONDRION, signal_to_noise=math.inf))


@pytest.fixture(scope="module")
def clean_cell():
    return make_cell(replace(SMALL, signal_to_noise=math.inf))


def test_every_class_has_the_requested_number_of_particles(cell):
    assert cell.picks["class_name"].value_counts().to_dict() == {
        "ribosome": 9,
        "fas": 4,
        **dict.fromkeys(DISTRACTOR_NAMES, 6),
    }


def test_volumes_are_float32_and_uint8_of_one_shape(cell):
    assert (cell.tomogram.dtype, cell.labels.dtype, cell.cytosol.dtype) == (
        np.float32,
        np.uint8,
        np.uint8,
    )
    assert cell.tomogram.shape == cell.labels.shape == cell.cytosol.shape == SMALL.shape


def test_every_particle_lies_whole_in_the_cytosol(cell):
    particles = np.isin(cell.labels, [LABELS[name] for name in SMALL.counts])
    assert particles.any()
    assert cell.cytosol[particles].all()


def test_no_particle_reaches_into_the_room_of_another(cell):
    points = cell.picks[["z", "y", "x"]].to_numpy()
    radii = [
        SHAPES[name].radius_nm * 10 / SMALL.voxel_spacing_angstrom
        for name in cell.picks["class_name"]
    ]
    first, second = np.triu_indices(len(points), 1)
    assert (pdist(points) >= np.take(radii, first) + np.take(radii, second)).all()


@pytest.mark.parametrize("name", [*PARTICLE_NAMES, *DISTRACTOR_NAMES])
def test_label_voxels_of_a_class_are_centred_on_its_picks(cell, name):
    """The mean of all label voxels is the mean of all picks: every shape's own centre is small."""
    voxels = np.argwhere(cell.labels == LABELS[name])
    assert np.abs(voxels.mean(0) - cell.picks_of(name).mean(0)).max() < 1.5


# --- large mitochondria


def test_a_cell_without_large_mitochondria_is_what_it_was_before_there_were_any(cell):
    """Numbers of version 0.1, of each of the five random streams but the noise's."""
    first = cell.picks.iloc[0]
    assert first[["z", "y", "x", "class_name"]].tolist() == [12, 80, 109, "ribosome"]
    assert first[["qx", "qw"]].tolist() == pytest.approx([-0.263794, -0.441295], abs=1e-6)
    assert not (cell.labels >= LABELS["mitochondrion"]).any()
    assert set(cell.picks["class_name"]) == set(SMALL.counts)


def test_a_mitochondrion_changes_neither_noise_nor_plasma_membrane(
    context_cell, clean_context_cell
):
    """Noise is scaled to the cytosol's, so the two are compared up to a factor."""
    cell, clean_cell = make_cell(LARGER), make_cell(replace(LARGER, signal_to_noise=math.inf))
    noise = (cell.tomogram - clean_cell.tomogram).ravel()
    other = (context_cell.tomogram - clean_context_cell.tomogram).ravel()
    assert np.corrcoef(noise, other)[0, 1] > 0.99999
    outside, still_outside = (
        (c.labels == LABELS["background"]) & (c.cytosol == 0) for c in (cell, context_cell)
    )
    assert outside.any()
    assert (outside == still_outside).mean() > 0.999


def test_particles_of_the_matrix_lie_in_the_mitochondrion_and_the_others_in_the_cytosol(
    context_cell,
):
    counts = context_cell.picks["class_name"].value_counts()
    assert counts[list(MATRIX_NAMES)].tolist() == [3, 2]
    assert counts[list(SMALL.counts)].to_dict() == SMALL.counts
    asked_for = np.isin(context_cell.labels, [LABELS[name] for name in SMALL.counts])
    assert context_cell.cytosol[asked_for].all()
    of_matrix = np.isin(context_cell.labels, [LABELS[name] for name in MATRIX_NAMES])
    assert of_matrix.any()
    assert not context_cell.cytosol[of_matrix].any()
    others = context_cell.labels[binary_dilation(of_matrix) & ~of_matrix]
    assert set(np.unique(others)) == {LABELS["mitochondrion"]}


def test_the_cytosol_leaves_the_mitochondrion_and_all_membranes_out(context_cell):
    inside = context_cell.labels == LABELS["mitochondrion"]
    assert 0.08 < inside.mean() < 0.2
    assert not context_cell.cytosol[inside].any()
    assert not context_cell.cytosol[context_cell.labels == LABELS["membrane"]].any()


def test_two_membranes_lie_between_the_cytosol_and_the_matrix():
    """The outside of the mitochondrion is a membrane all round, and so is what is 12 nm inside."""
    cell = make_cell(replace(WITH_MITOCHONDRION, n_ribosomes=0, n_fas=0, n_distractors_each=0))
    z = LARGER.shape[0] // 2
    membrane = cell.labels[z] == LABELS["membrane"]
    filled = label(cell.cytosol[z] == 0)[0]
    mitochondrion = (
        filled == np.bincount(filled[cell.labels[z] == LABELS["mitochondrion"]]).argmax()
    )
    depth_nm = distance_transform_edt(np.pad(mitochondrion, 30, "edge"))[30:-30, 30:-30] * 1.348
    outer, gap, inner = (
        membrane[(depth_nm > low) & (depth_nm < high)].mean()
        for low, high in ((1.4, 6), (8, 11), (14, 17))
    )
    assert outer > 0.95
    assert inner > 0.8
    assert gap < 0.3


def test_a_mitochondrion_is_denser_than_the_cytosol(clean_context_cell):
    """Mass is dark."""
    mitochondrion = clean_context_cell.labels >= LABELS["mitochondrion"]
    cytosol = clean_context_cell.cytosol > 0
    tomogram = clean_context_cell.tomogram
    assert tomogram[mitochondrion].mean() < tomogram[cytosol].mean() - 0.05


def test_more_mitochondria_than_fit_are_refused():
    with pytest.raises(ConfigError, match=r"9 mitochondria .* room for \d; ask for fewer"):
        make_cell(replace(SMALL, n_mitochondria=9))


def test_the_cell_of_the_demo_holds_a_mitochondrion_and_as_many_wanted_particles_as_ever():
    assert CONTEXT_CELL.n_mitochondria == 1
    assert (CONTEXT_CELL.n_ribosomes, CONTEXT_CELL.n_fas) == (140, 60)
    assert CONTEXT_CELL.seed == CellSettings().seed
    assert CONTEXT_CELL.matrix_counts["mitoribosome"] > 0
    assert CellSettings().matrix_counts == {}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fits_the_ball_that_its_place_was_reserved_for(name):
    shape = SHAPES[name]
    grid = np.mgrid[(slice(-20, 20.1, 0.5),) * 3].astype(np.float32)
    inside = shape.distance(grid) < 0
    reach = np.sqrt((grid**2).sum(0))[inside].max()
    assert 0.85 * shape.radius_nm < reach <= shape.radius_nm


def test_the_ribosome_has_two_lobes_and_fas_is_hollow():
    along = np.zeros((3, 401), np.float32)
    along[0] = np.linspace(-20, 20, 401)
    across = along[[1, 0, 2]] + np.float32(4) * np.array([[1], [0], [0]], np.float32)

    def n_pieces(name, line):
        return int((np.diff((SHAPES[name].distance(line) < 0).astype(int)) == 1).sum())

    widths = [
        (SHAPES["ribosome"].distance(along[[2, 0, 1]] + lobe) < 0).sum()
        for lobe in (np.float32([[-2.5], [0], [0]]), np.float32([[9], [0], [0]]))
    ]
    assert widths[0] > 1.3 * widths[1]
    assert n_pieces("fas", across) == 2


def test_orientations_are_unit_quaternions_that_turn_the_painted_particle():
    """A rod lies along the particle's z axis, so its label voxels point where z is turned to."""
    settings = CellSettings(
        (64, 96, 96), n_ribosomes=0, n_fas=0, n_distractors_each=3, n_vesicles=0, seed=7
    )
    cell = make_cell(settings)
    rods = cell.picks[cell.picks["class_name"] == "rod"]
    quaternions = rods[["qx", "qy", "qz", "qw"]].to_numpy()
    assert np.allclose(np.linalg.norm(quaternions, axis=1), 1)
    voxels = np.argwhere(cell.labels == LABELS["rod"])
    for centre, quaternion in zip(cell.picks_of("rod"), quaternions, strict=True):
        offsets = voxels[np.linalg.norm(voxels - centre, axis=1) < 11] - centre
        longest = np.linalg.svd(offsets, full_matrices=False)[2][0]
        expected = Rotation.from_quat(quaternion).apply([0, 0, 1])[::-1]
        assert abs(longest @ expected) > 0.99


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(cell):
    again = make_cell(SMALL)
    assert again.tomogram.tobytes() == cell.tomogram.tobytes()
    assert again.labels.tobytes() == cell.labels.tobytes()
    pd.testing.assert_frame_equal(again.picks, cell.picks)
    other = make_cell(replace(SMALL, seed=6))
    assert not np.array_equal(other.picks["z"], cell.picks["z"])


def test_noise_moves_no_particle(cell, clean_cell):
    pd.testing.assert_frame_equal(clean_cell.picks, cell.picks)
    assert np.array_equal(clean_cell.labels, cell.labels)


@pytest.mark.parametrize("ratio", [0.006, 0.5])
def test_the_measured_signal_to_noise_is_the_requested_one(clean_cell, ratio):
    noisy = make_cell(replace(SMALL, signal_to_noise=ratio))
    inside = noisy.cytosol > 0
    noise = noisy.tomogram - clean_cell.tomogram
    measured = clean_cell.tomogram[inside].var() / noise[inside].var()
    assert measured == pytest.approx(ratio, rel=1e-3)


def test_particles_are_dark(clean_cell):
    particles = np.isin(clean_cell.labels, [LABELS[name] for name in SMALL.counts])
    free = (clean_cell.cytosol > 0) & ~particles
    assert clean_cell.tomogram[particles].mean() < clean_cell.tomogram[free].mean() - 1


@pytest.mark.parametrize("wedge", [60.0, 90.0])
def test_the_missing_wedge_is_empty_and_the_rest_is_not(wedge):
    tomogram = make_cell(replace(SMALL, missing_wedge_degrees=wedge)).tomogram
    power = np.abs(fft.fftn(tomogram.astype(np.float64))) ** 2
    z, x = (np.abs(fft.fftfreq(n)) for n in (SMALL.shape[0], SMALL.shape[2]))
    from_beam = np.degrees(np.arctan2(x[None, :], z[:, None]))
    in_wedge = (from_beam < wedge / 2 - 0.1) & (z[:, None] > 0)
    measured = from_beam > wedge / 2 + 0.1
    power = power.sum(axis=1)
    assert power[in_wedge].sum() < 1e-9 * power.sum()
    assert power[measured].min() > 1e-6 * power.max()


def test_the_noise_has_the_power_that_the_settings_say():
    """Ratio of measured to stated power is one number in every shell of frequencies."""
    settings = replace(SMALL, shape=(64, 64, 64))
    power = np.abs(fft.rfftn(coloured_noise(settings, np.random.default_rng(0)))) ** 2
    z, y, x = np.meshgrid(fft.fftfreq(64), fft.fftfreq(64), fft.rfftfreq(64), indexing="ij")
    from_axis, frequency = (np.sqrt(s) / 13.48 for s in (z**2 + x**2, x**2 + y**2 + z**2))
    stated = (from_axis + 1 / 150) / (1 + (40 * frequency) ** 2)
    measured = (np.abs(z) <= np.sqrt(3) * x) & (frequency > 0)
    shell = np.digitize(frequency, [0.005, 0.01, 0.02, 0.03, 0.04])
    ratios = [(power / stated.clip(1e-9))[measured & (shell == s)].mean() for s in range(6)]
    assert np.allclose(np.divide(ratios, ratios[-1]), 1, atol=0.15)
    assert np.allclose(np.divide(ratios[2:], ratios[-1]), 1, atol=0.03)
    assert stated[0, 0, 20] > 1.3 * stated[0, 0, 1]


def test_low_passed_density_does_not_set_ribosomes_apart(clean_cell):
    low = gaussian_filter(clean_cell.tomogram, 4)
    darkness = {
        name: -np.median([low[tuple(point)] for point in clean_cell.picks_of(name).astype(int)])
        for name in ("ribosome", *DISTRACTOR_NAMES)
    }
    ratios = [darkness[name] / darkness["ribosome"] for name in DISTRACTOR_NAMES]
    assert min(ratios) > 0.6
    assert max(ratios) > 1.0


def test_the_default_cell_asks_for_each_distractor_at_the_density_of_its_brief():
    counts = CellSettings().counts
    assert [counts[name] for name in DISTRACTOR_NAMES] == [90, 90, 90, 90]
    assert sum(counts[name] for name in DISTRACTOR_NAMES) >= counts["ribosome"]


def test_too_many_particles_are_refused_with_how_many_fit():
    with pytest.raises(ConfigError, match=r"500 particles .* room for \d+; ask for fewer"):
        make_cell(CellSettings((32, 64, 64), n_ribosomes=500, n_fas=0, n_distractors_each=0))


def test_placement_in_an_empty_cytosol_ends_with_an_error():
    with pytest.raises(ConfigError, match="room for 0"):
        place_particles(np.zeros((8, 8, 8)), {"a": 1}, {"a": 2.0}, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"shape": (16, 64, 64)}, "shape"),
        ({"n_fas": -1}, "n_fas"),
        ({"n_mitochondria": -1}, "n_mitochondria"),
        ({"signal_to_noise": 0.0}, "signal_to_noise"),
        ({"missing_wedge_degrees": 200.0}, "missing_wedge_degrees"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(change, name):
    with pytest.raises(ConfigError, match=name):
        CellSettings(**change)


def test_written_files_carry_the_spacing_and_the_truth(cell, tmp_path):
    paths = write_cell(cell, tmp_path / "cell")
    for name in ("tomogram", "labels", "cytosol"):
        with mrcfile.open(paths[name]) as mrc:
            assert mrc.voxel_size.tolist() == pytest.approx([13.48] * 3)
            assert np.array_equal(mrc.data, getattr(cell, name))
    table = pd.read_csv(paths["truth"])
    assert list(table.columns) == ["z", "y", "x", "class_name", "qx", "qy", "qz", "qw"]
    assert np.array_equal(table["class_name"], cell.picks["class_name"])
    assert np.allclose(table[["z", "y", "x"]], cell.picks[["z", "y", "x"]])


def test_a_cell_on_disk_is_not_replaced_unless_asked_for(cell, clean_cell, tmp_path):
    paths = write_cell(cell, tmp_path)
    before = paths["tomogram"].read_bytes()
    paths["labels"].unlink()
    with pytest.raises(OutputExistsError, match=r"tomogram\.mrc"):
        write_cell(clean_cell, tmp_path)
    assert paths["tomogram"].read_bytes() == before
    assert not paths["labels"].exists()
    write_cell(clean_cell, tmp_path, overwrite=True)
    assert paths["tomogram"].read_bytes() != before
