"""What prediction takes from a trained model's card: spectrum, threshold, voxel spacing."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from training_cells import EDGE, cells, write_config, write_mrc
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import RunConfig, SegmentSettings
from deepict_dask.config.training import load_train_config
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.io.dataset import list_tomograms
from deepict_dask.io.spectrum import read_spectrum, write_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume, measure_spectrum
from deepict_dask.jobs.export_model import export_model
from deepict_dask.jobs.segmenting.model_fit import spacing_misfit
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training.train import equalize_training, train_model
from deepict_dask.models.checkpoint import load_checkpoint, save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.plan import plan_run

__all__ = ["cells"]


def test_tomograms_are_equalized_first_and_the_card_holds_the_spectrum(cells, one_worker):
    session = Session(one_worker)
    target = measure_spectrum(session, cells / "two.mrc", cells / "target.tsv")
    path = write_config(cells, equalize={"target": "target.tsv"}, validation={})
    config = equalize_training(session, load_train_config(path))
    entries = list_tomograms(config.tomograms)
    assert [entry.name for entry in entries] == ["one", "two"]
    alone = equalize_volume(session, cells / "one.mrc", cells / "alone.zarr", config.equalize)
    whole = Box.whole((EDGE,) * 3)
    assert np.array_equal(open_volume(entries[0].path).read(whole), open_volume(alone).read(whole))
    done = train_model(config)
    said = load_checkpoint(done.model).card["equalization"]
    assert said["target"]["intensity"] == list(read_spectrum(target).intensity)
    again = equalize_training(session, load_train_config(path))
    assert train_model(again).was_finished

    export_model(str(done.model), cells / "again.tsv")
    assert (cells / "again.tsv").read_text() == target.read_text()
    by_model = config.equalize.model_copy(update={"target": done.model})
    other = equalize_volume(session, cells / "one.mrc", cells / "by_model.zarr", by_model)
    assert np.array_equal(open_volume(other).read(whole), open_volume(alone).read(whole))


def test_segment_says_which_threshold_the_model_recommends(cells):
    said = {"cube": {"threshold": 0.6}, "ball": {"threshold": 0.3, "min_size": 9}}
    write_model(cells / "m.safetensors", {"recommended": said})
    words = ["segment", cells / "one.mrc", cells / "s.zarr", "--model", cells / "m.safetensors"]
    words += ["--class", "cube", "--workers", "1", "--device", "cpu", "--no-progress"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    *_, recommended, last = done.stdout.splitlines()
    assert recommended == "the model recommends for cube: threshold 0.6"
    assert last == f"wrote {cells / 's.zarr'}"
    assert "ball" not in done.output


@pytest.mark.parametrize("words", [[], ["--threshold", "0.4"]])
def test_pick_says_that_it_takes_a_threshold_nobody_gave(monkeypatch, words):
    seen = []

    def pick(_session, _score, _folder, settings, **_wishes):
        seen.append(settings.threshold)
        return SimpleNamespace(n_picks=1)

    monkeypatch.setattr("deepict_dask.jobs.picking.pick.pick_particles", pick)
    monkeypatch.setattr("deepict_dask.cli.picking.open_session", lambda **_: nullcontext())
    done = CliRunner().invoke(app, ["pick", "s.zarr", "picks", *words])
    assert done.exit_code == 0, done.output
    assert ("threshold 0.5, as no --threshold is given" in done.output) == (not words)
    assert seen == [0.4 if words else 0.5]


def write_model(path, card):
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    save_model(path, network, class_names=["cube"], voxel_spacing_angstrom=10.0, card=card)


def test_a_run_without_equalization_warns_where_the_model_had_it(cells, caplog):
    write_model(cells / "plain.safetensors", {})
    said = {"target": {"intensity": [1.0], "frequency_per_angstrom": [0.01]}}
    write_model(cells / "equalized.safetensors", {"equalization": said})
    for name, warned in (("plain", False), ("equalized", True)):
        model = SegmentSettings(model=str(cells / f"{name}.safetensors"))
        config = RunConfig(tomograms=cells / "one.mrc", output=cells / "out", segment=(model,))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            plan_run(config)
        assert caplog.text.count("trained on equalized tomograms") == warned


def test_a_model_without_equalization_is_no_target(cells, one_worker):
    write_model(cells / "plain.safetensors", {})
    settings = load_train_config(
        write_config(cells, equalize={"target": "plain.safetensors"})
    ).equalize
    with pytest.raises(ConfigError, match="trained on equalized tomograms, found none"):
        equalize_volume(Session(one_worker), cells / "one.mrc", cells / "o.zarr", settings)


def test_the_command_equalizes_with_the_cutoff_of_the_models_card(cells):
    """As the warning of a run asks for: no option but the model."""
    spectrum = Spectrum((3.0, 2.0, 1.0, 0.5), (0.01, 0.02, 0.03, 0.05))
    target = {
        "intensity": spectrum.intensity,
        "frequency_per_angstrom": spectrum.frequency_per_angstrom,
    }
    card = {"cutoff": 0.02, "smoothing": 0.005, "compat": None, "target": target}
    write_model(cells / "m.safetensors", {"equalization": card})
    write_spectrum(cells / "t.tsv", spectrum)

    def equalized(*words):
        line = ["equalize", cells / "one.mrc", cells / "out.mrc", *words, "--overwrite"]
        line += ["--workers", "1", "--device", "cpu", "--no-progress"]
        done = CliRunner().invoke(app, [str(word) for word in line])
        assert done.exit_code == 0, done.output
        return (cells / "out.mrc").read_bytes()[1024:]

    by_card = equalized("--target", cells / "m.safetensors")
    by_hand = ("--target", cells / "t.tsv", "--cutoff", "0.02", "--smoothing", "0.005")
    assert by_card == equalized(*by_hand)
    assert by_card != equalized("--target", cells / "t.tsv")


@pytest.mark.parametrize(("spacing", "warned"), [(10.4, False), (10.6, True), (9.4, True)])
def test_a_voxel_spacing_off_by_more_than_5_percent_is_told(cells, spacing, warned):
    write_mrc(cells / "off.mrc", np.zeros((4, 4, 4), np.float32), spacing)
    header = open_volume(cells / "off.mrc").header
    text = spacing_misfit(header, 10.0, "m.safetensors")
    assert (text is not None and "was trained at 10 Å" in text) == warned


def test_a_spectrum_by_place_comes_back_as_it_was(tmp_path):
    card = {"equalization": {"cutoff": 350, "smoothing": 20, "compat": "deepict",
            "target": {"intensity": [2.0, 1.0], "frequency_per_angstrom": None}}}  # fmt: skip
    write_model(tmp_path / "m.safetensors", card)
    export_model(str(tmp_path / "m.safetensors"), tmp_path / "out.tsv")
    expected = write_spectrum(tmp_path / "by_hand.tsv", Spectrum((2.0, 1.0)))
    assert (tmp_path / "out.tsv").read_text() == expected.read_text()
