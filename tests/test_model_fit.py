"""Is a tomogram that a model was not trained for told of, before any network runs?"""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import RunConfig, SegmentSettings, dump_config
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.equalization.likeness import (
    NOT_EQUALIZED,
    departure,
    expected_amplitude,
    local_amplitude,
    sample_boxes,
)
from deepict_dask.equalization.spectrum import RadialKnots
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.runs.journal import read_events
from deepict_dask.jobs.segmenting.model_fit import sampled_amplitude
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.pipeline import run_pipeline
from deepict_dask.plan import plan_run
from deepict_dask.synthetic import CONTEXT_CELL, make_cell

SPACING = 13.48
CELL = replace(
    CONTEXT_CELL, shape=(64, 128, 128), n_mitochondria=0, n_ribosomes=12, n_fas=6,
    n_distractors_each=6, n_vesicles=1,
)  # fmt: skip
TOLD = "is not equalized to their spectrum"


def write_mrc(path, volume, spacing=SPACING):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.asarray(volume, np.float32))
        mrc.voxel_size = spacing
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A cell as it is, equalized to another one, and models trained on such."""
    folder = tmp_path_factory.mktemp("fit")
    target = radial_spectrum(make_cell(replace(CELL, seed=1)).tomogram, SPACING)
    # another microscope: the same frequencies, other strengths
    raw = make_cell(replace(CELL, seed=2, signal_to_noise=2.0)).tomogram.astype(np.float32)
    write_mrc(folder / "raw.mrc", raw)
    write_mrc(folder / "half.mrc", raw, SPACING / 2)
    equalized = EqualizeOp(target, SPACING).transform(raw.copy())
    write_mrc(folder / "equalized.mrc", equalized)
    write_mrc(folder / "filtered.mrc", EqualizeOp(target, SPACING, cutoff=0.02).transform(raw))
    for name, cutoff in (("model", None), ("low", 0.02)):
        write_models(folder, name, card_of(target, cutoff))
    write_models(folder, "plain", {"equalization": None})
    return folder


def card_of(target, cutoff=None, compat=None):
    frequency = target.frequency_per_angstrom
    said = {"intensity": list(target.intensity), "frequency_per_angstrom": list(frequency)}
    filtered = {"cutoff": cutoff, "smoothing": 0.0, "compat": compat}
    return {"equalization": {**filtered, "target": said}}


def write_models(folder, name, card):
    torch.manual_seed(0)  # of any weights some answer the same to everything
    solid = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    flat = UNet2D(UNet2DSettings(depth=1, initial_features=2))
    for ending, network in (("", solid), ("_2d", flat)):
        for weights in network.parameters():
            torch.nn.init.normal_(weights, std=0.2)
        save_model(
            folder / f"{name}{ending}.safetensors", network, class_names=["a"],
            voxel_spacing_angstrom=SPACING, card=card,
        )  # fmt: skip


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def departure_of(volume, target, **filtered):
    boxes = sample_boxes(volume.shape)
    knots = RadialKnots(boxes[0].shape, SPACING)
    amplitude = local_amplitude((volume[box.slices] for box in boxes), knots)
    wanted = expected_amplitude(target, knots.frequency_per_angstrom, **filtered)
    return departure(amplitude, wanted, knots)


# the rule


@pytest.mark.parametrize("shape", [(24, 24, 24), (32, 48, 64), (64, 100, 100), (80, 200, 70)])
@pytest.mark.parametrize("slope", [0, 1, 2])
def test_noise_equalized_to_any_target_is_known_as_equalized_in_any_box(shape, slope):
    rng = np.random.default_rng(0)
    knots = RadialKnots((64, 64, 64), SPACING)
    k = knots.frequency_per_angstrom
    target = Spectrum(tuple((1 / k**slope).tolist()), tuple(k.tolist()))
    equalized = EqualizeOp(target, SPACING).transform(rng.normal(size=shape).astype(np.float32))
    assert departure_of(equalized, target) < NOT_EQUALIZED
    assert departure_of(1000 + 50 * equalized, target) < NOT_EQUALIZED  # grey values are free


@pytest.mark.parametrize("exponent", [-1.0, 1.0])
def test_a_spectrum_that_falls_otherwise_is_known_as_not_equalized(exponent):
    rng = np.random.default_rng(0)
    k = RadialKnots((64, 64, 64), SPACING).frequency_per_angstrom
    flat = Spectrum(tuple(np.ones(len(k)).tolist()), tuple(k.tolist()))
    tilted = Spectrum(tuple((k**exponent).tolist()), tuple(k.tolist()))
    volume = rng.normal(size=(64, 100, 100)).astype(np.float32)
    assert departure_of(EqualizeOp(tilted, SPACING).transform(volume), flat) > NOT_EQUALIZED


def test_what_a_low_pass_filter_took_counts_and_its_absence_too():
    volume = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    k = RadialKnots((64, 64, 64), SPACING).frequency_per_angstrom
    flat = Spectrum(tuple(np.ones(len(k)).tolist()), tuple(k.tolist()))
    low = EqualizeOp(flat, SPACING, cutoff=0.02, smoothing=0.002).transform(volume.copy())
    filtered = {"cutoff": 0.02, "smoothing": 0.002}
    assert departure_of(low, flat, **filtered) < NOT_EQUALIZED
    assert departure_of(volume, flat, **filtered) > NOT_EQUALIZED
    assert departure_of(low, flat) > NOT_EQUALIZED


def test_few_small_cubes_are_read_whatever_the_size():
    for shape in ((464, 928, 928), (2000, 4000, 4000), (64, 64, 64), (17, 500, 90)):
        boxes = sample_boxes(shape)
        assert 1 <= len(boxes) <= 27
        voxels = np.zeros(shape, bool) if np.prod(shape) < 1e7 else None
        for box in boxes:
            assert max(box.shape) <= 64
            assert all(0 <= a < b <= n for a, b, n in zip(box.start, box.stop, shape, strict=True))
            if voxels is not None:
                assert not voxels[box.slices].any()  # no voxel counts twice
                voxels[box.slices] = True


def test_nothing_is_said_of_a_tomogram_without_contrast_or_with_nan(tmp_path):
    flat = Spectrum((1.0, 1.0), (0.001, 0.06))
    assert departure_of(np.zeros((32, 32, 32), np.float32), flat) is None
    for odd in (np.nan, np.inf, 3e38):
        volume = np.ones((32, 32, 32), np.float32)
        volume[16, 16, 16] = odd
        assert departure_of(volume, flat) is None or odd == 3e38
    thin = open_volume(write_mrc(tmp_path / "thin.mrc", np.ones((4, 64, 64))))
    assert len(sampled_amplitude(thin)) == 0


# segment


@pytest.mark.parametrize("ending", ["", "_2d"])
@pytest.mark.parametrize(
    ("tomogram", "model", "told"),
    [
        ("equalized", "model", None),
        ("raw", "model", TOLD),
        ("half", "model", "the tomogram has 6.74 Å, about half of it"),
        ("filtered", "low", None),
        ("equalized", "low", TOLD),
        ("raw", "plain", None),
        (
            "half",
            "plain",
            "(bin it by 2: `deepict-dask convert IN OUT.zarr --pyramid mean` leaves",
        ),
    ],
)
def test_one_warning_names_the_cause_and_what_to_do(
    scene, tmp_path, one_worker, caplog, tomogram, model, told, ending
):
    settings = SegmentSettings(model=str(scene / f"{model}{ending}.safetensors"))
    with caplog.at_level(logging.WARNING):
        segment_volume(
            Session(one_worker), scene / f"{tomogram}.mrc", tmp_path / "s.zarr", settings
        )
    said = warnings_of(caplog)
    assert len(said) == (told is not None)
    for text in said:
        assert told in text
        assert text.startswith(str(scene / f"{tomogram}.mrc"))
        assert "rescale the tomogram" in text or "equalize it first" in text


@pytest.mark.parametrize("tomogram", ["raw", "half"])
def test_the_warning_comes_before_the_first_window(scene, tmp_path, one_worker, tomogram):
    order = []

    class Watched(logging.Handler):
        def emit(self, _record):
            order.append("warning")

    class Stages:
        def stage(self, name, *_counts):
            order.append(name)
            return nullcontext(lambda _n: None)

    watched = Watched(logging.WARNING)
    logging.getLogger("deepict_dask").addHandler(watched)
    try:
        settings = SegmentSettings(model=str(scene / "model.safetensors"))
        session = Session(one_worker, Stages())
        segment_volume(session, scene / f"{tomogram}.mrc", tmp_path / "s.zarr", settings)
    finally:
        logging.getLogger("deepict_dask").removeHandler(watched)
    assert order == ["warning", "statistics", "segment"]


# run


def config_of(scene, out, tomograms, model="model", **more):
    names = tomograms.split()
    (out / "table.csv").write_text(
        "\n".join(["name,tomogram", *(f"{name},{scene / name}.mrc" for name in names)]) + "\n"
    )
    values = {
        "tomograms": out / "table.csv", "output": out / "results",
        "segment": [{"model": str(scene / f"{model}.safetensors")}], **more,
    }  # fmt: skip
    return RunConfig.model_validate(values)


@pytest.mark.parametrize("keep_scores", [True, False])
def test_a_run_tells_it_of_each_tomogram_once_and_writes_it_down(
    scene, tmp_path, two_workers, caplog, keep_scores
):
    pick = [{"name": "p", "threshold": 0.5}, {"name": "q", "threshold": 0.9}]
    config = config_of(scene, tmp_path, "raw equalized half", pick=pick, keep_scores=keep_scores)
    with caplog.at_level(logging.WARNING):
        run_pipeline(Session(two_workers), config)
    said = sorted(text for text in warnings_of(caplog) if "was trained" in text)
    assert [text.partition(":")[0].rpartition("/")[2] for text in said] == ["half.mrc", "raw.mrc"]
    events = read_events(config.output)
    assert {n: len(s.warnings) for n, s in events.items()} == {"raw": 1, "equalized": 0, "half": 1}
    assert events["raw"].warnings == [said[1]]
    shown = CliRunner().invoke(app, ["status", str(config.output), "--json"])
    found = json.loads(shown.output)["tomograms"]
    assert [one["warnings"] for one in found] == [[said[1]], [], [said[0]]]
    lines = CliRunner().invoke(app, ["status", str(config.output)]).output.splitlines()[2:]
    assert [line.split()[0] for line in lines] == [
        "raw",
        "warning:",
        "equalized",
        "half",
        "warning:",
    ]
    assert [line.partition(": ")[2] for line in lines if "warning:" in line] == said[::-1]
    pages = [page.read_text() for page in config.output.rglob("*.html")]
    assert sum(page.count(TOLD) for page in pages) == 1


@pytest.mark.parametrize("keep_scores", [True, False])
def test_what_an_earlier_run_has_finished_is_told_of_again_until_it_is_made_anew(
    scene, tmp_path, two_workers, caplog, keep_scores
):
    first, second = ({"name": name, "threshold": 0.5} for name in "pq")
    config = config_of(scene, tmp_path, "raw equalized", pick=[first], keep_scores=keep_scores)
    run_pipeline(Session(two_workers), config)
    (text,) = read_events(config.output)["raw"].warnings
    for sections in ([first], [first, second], [first, second]):
        caplog.clear()
        more = config_of(scene, tmp_path, "raw equalized", pick=sections, keep_scores=keep_scores)
        run_pipeline(Session(two_workers), more)
        events = read_events(config.output)
        assert {n: s.warnings for n, s in events.items()} == {"raw": [text], "equalized": []}
        assert [said for said in warnings_of(caplog) if "was trained" in said] == [text]
        pages = [page.read_text() for page in config.output.rglob("*.html")]
        assert sum(page.count(TOLD) for page in pages) == 1
    mended = config_of(
        scene, tmp_path, "raw equalized", pick=[first], keep_scores=keep_scores,
        equalize={"target": scene / "model.safetensors"},
    )  # fmt: skip
    run_pipeline(Session(two_workers), mended)
    assert all(not state.warnings for state in read_events(config.output).values())


def test_a_run_that_equalizes_warns_of_the_spacing_only(scene, tmp_path, one_worker, caplog):
    equalize = {"target": scene / "model.safetensors"}
    config = config_of(scene, tmp_path, "raw half", equalize=equalize)
    with caplog.at_level(logging.WARNING):
        plan_run(config)
        planned = warnings_of(caplog)
        caplog.clear()
        run_pipeline(Session(one_worker), config)
    for said in (planned, warnings_of(caplog)):
        assert ["about half of it" in text for text in said] == [True]


def test_a_dry_run_tells_it_as_well(scene, tmp_path):
    config = config_of(scene, tmp_path, "raw equalized half")
    (tmp_path / "run.yaml").write_text(dump_config(config))
    shown = CliRunner().invoke(app, ["run", str(tmp_path / "run.yaml"), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert (shown.stderr.count(TOLD), shown.stderr.count("about half of it")) == (1, 1)


def test_a_spectrum_by_place_cannot_be_looked_for_and_is_told_by_the_card(
    scene, tmp_path, one_worker, caplog
):
    card = {"equalization": {
        "cutoff": None, "smoothing": 0.0, "compat": "deepict",
        "target": {"intensity": [3.0, 2.0, 1.0], "frequency_per_angstrom": None},
    }}  # fmt: skip
    write_models(tmp_path, "placed", card)
    config = config_of(scene, tmp_path, "raw", tmp_path / "placed")
    with caplog.at_level(logging.WARNING):
        run_pipeline(Session(one_worker), config)
    said = warnings_of(caplog)
    assert len(said) == 1
    assert "but nothing here equalizes them" in said[0]


# no false alarm


def test_the_demos_cell_and_the_golden_models_are_not_warned_of(tmp_path, caplog, golden):
    from deepict_dask.models.registry import bundled_models

    write_mrc(tmp_path / "cell.mrc", make_cell(CELL).tomogram)
    models = [*bundled_models(), golden / "deepict/models/blob_D2_IF4_BN.pth"]
    segment = [{"model": str(model)} for model in models]
    config = RunConfig.model_validate(
        {"tomograms": tmp_path / "cell.mrc", "output": tmp_path / "out", "segment": segment}
    )
    with caplog.at_level(logging.WARNING):
        plan_run(config)
    assert warnings_of(caplog) == []
