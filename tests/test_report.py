"""The report says what is there, whatever names are thrown at it; runs leave one."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
from report_page import Page, pixels, run
from report_scenes import (
    CENTRES,
    RADIUS,
    SHAPE,
    balls,
    volume,
    write_dataset,
    write_picks,
    write_plan,
    write_volume,
)
from typer.testing import CliRunner

from deepict_dask import run_outputs
from deepict_dask.cli import app
from deepict_dask.config import RunConfig
from deepict_dask.core.errors import ConfigError
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline
from deepict_dask.report import report_of_run, sources, write_report
from deepict_dask.report.histograms import histogram_of
from deepict_dask.report.views import plan_views, read_views
from deepict_dask.synthetic import CellSettings, make_cell, write_cell

__all__ = ["run"]


@pytest.mark.parametrize("max_pixels", [7, 16, 48])
def test_pictures_are_means_of_voxels_whatever_the_chunks(tmp_path, max_pixels):
    stored = open_volume(write_volume(tmp_path / "a.zarr", volume()))
    plan = plan_views(SHAPE, max_pixels=max_pixels, n_slices=5)
    f = plan.factor
    for reader in (stored, ArrayReader(volume())):
        views = read_views(reader, plan)
        for image, (start, stop) in zip(views.z, plan.slabs, strict=True):
            slab = volume()[start:stop]
            for (row, column), found in np.ndenumerate(image):
                voxels = slab[:, row * f : row * f + f, column * f : column * f + f]
                assert found == pytest.approx(voxels.mean(), abs=1e-5)
        (_, _, (start, stop)) = plan.central
        assert views.x[-1, -1] == pytest.approx(
            volume()[(plan.pixels[0] - 1) * f :, (plan.pixels[1] - 1) * f :, start:stop].mean(),
            abs=1e-5,
        )


def test_blocks_that_no_picture_shows_are_not_read():
    class Counting(ArrayReader):
        def read(self, box):
            seen.append(box)
            return super().read(box)

    seen: list = []
    array = np.zeros((64, 8, 1 << 15), "float32")  # blocks of several planes
    read_views(Counting(array), plan_views(array.shape, max_pixels=1 << 15, n_slices=2))
    read = sum(box.stop[0] - box.start[0] for box in seen)
    assert 0 < read <= 64
    assert max((box.stop[0] - box.start[0]) for box in seen) < 64


def test_a_report_has_slices_layers_histograms_spectra_and_settings(run):
    page = Page(write_report(run))
    assert page.data["shape"] == list(SHAPE)
    names = [layer["name"] for layer in page.data["layers"]]
    assert names == ["region cytosol", "picks_ribosome: segmentation", "picks_ribosome: picks"]
    titles = [a["aria-label"] for a in page.all("svg", role="img")]
    assert [title.split(":")[0] for title in titles] == [
        "cluster size", "score", "distance to cytosol", "radial amplitude spectrum",
    ]  # fmt: skip
    assert "min_size 100; max_size 400" in titles[0]
    assert "threshold 0.5" in titles[1]
    for words in ("3 picks", "12.3 s", "24 × 40 × 48", "10 Å", "zarr 3.1.6", "keep_scores: true",
                  "1 farther than 100.0 nm", "ada on node7"):  # fmt: skip
        assert words in page.text
    assert "tomogram equalized target" in page.text


def test_a_report_loads_nothing_and_may_not(run):
    text = write_report(run).read_text()
    page = Page(run / "report.html")
    assert (
        "default-src 'none'"
        in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    )
    sources_ = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert sources_
    assert all(address.startswith("data:") for address in sources_)
    assert re.findall(r"https?:|url\(|@import", text) == []


def test_pictures_show_the_slab_they_name_and_masks_lie_where_the_clusters_are(run):
    data = Page(write_report(run)).data
    (segmentation,) = [one for one in data["layers"] if one["kind"] == "segmentation"]
    for (start, stop), uri, grey in zip(
        data["slabs"], segmentation["z"], data["grey"]["z"], strict=True
    ):
        expected = balls()[start:stop].mean(axis=0) >= 0.5
        if not expected.any():
            assert uri is None
            continue
        kind, mask = pixels(uri)
        assert kind == "png"
        assert (np.asarray(mask.convert("RGBA"))[..., 3] > 0).tolist() == expected.tolist()
        _, picture = pixels(grey)
        values = np.asarray(picture.convert("L"), float)
        assert values[expected].mean() < values[~expected].mean() - 40  # particles are dark
    (picks,) = [one for one in data["layers"] if one["kind"] == "picks"]
    assert [tuple(point[:3]) for point in picks["points"]] == list(CENTRES)
    assert all(abs(point[3] - RADIUS) < 0.5 for point in picks["points"])


def test_every_picture_and_control_has_a_text(run):
    page = Page(write_report(run))
    assert all("alt" in a for a in page.all("img"))
    shown = [a["alt"] for a in page.all("img", **{"class": "grey"})]
    assert [re.search(r"at ([zyx])", alt)[1] for alt in shown] == ["z", "y", "x"]
    (slider,) = page.all("input", id="z-slider")
    assert page.all("label", **{"for": "z-slider"})
    assert int(slider["max"]) == len(page.data["slabs"]) - 1
    heads = page.all("th", scope="col")
    assert {"aria-sort"} <= set(heads[0])


def test_failures_come_first_and_each_tomogram_has_a_page(tmp_path):
    run = write_dataset(tmp_path, ["A", "B", "C"])
    page = Page(write_report(run))
    badges = [a["class"] for a in page.all("span") if a.get("class", "").startswith("badge")]
    assert badges == ["badge failed", "badge waiting", "badge done"]
    assert [a["href"] for a in page.all("a")] == ["report/B.html", "report/A.html"]
    assert "the file is <cut off> & short" in page.text
    failed = Page(run / "report" / "B.html")
    assert "picks_ribosome: not made: the tomogram failed before" in failed.text
    assert "no slices are shown" in failed.text
    done = Page(run / "report" / "A.html")
    assert "3 picks" in done.text
    assert "score maps: not stored (keep_scores: false)" in done.text
    assert "equalization: not asked for" in done.text
    assert "region cytosol: this tomogram has no mask of it" in done.text
    assert not (run / "report" / "C.html").exists()


def test_nothing_a_user_names_becomes_markup(tmp_path):
    name = "<img src=x onerror=alert(1)>\"'&</script>"[:40].replace("/", "")
    run = write_dataset(tmp_path, [name, "B"])
    for path in (write_report(run), *(run / "report").iterdir()):
        page = Page(path)
        assert page.all("img", src="x") == []
        assert not any("onerror" in attributes for _, attributes in page.elements)
    assert name in Page(run / "report.html").text


def test_a_page_is_made_again_only_if_its_tomogram_has_changed(tmp_path):
    run = write_dataset(tmp_path, ["A", "B", "C"])
    write_report(run)
    page = run / "report" / "A.html"
    before = page.stat().st_mtime_ns, Page(run / "report.html").all("img")
    assert before[1]
    write_report(run)
    assert (page.stat().st_mtime_ns, Page(run / "report.html").all("img")) == before
    record = run / "A" / "picks_ribosome" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"n_picks": 2}))
    write_report(run)
    assert page.stat().st_mtime_ns != before[0]
    assert "2 picks" in Page(page).text


def test_workers_make_the_pages_too(tmp_path, two_workers):
    run = write_dataset(tmp_path, ["A", "B", "C"])
    write_report(run, workers=two_workers)
    by_workers = Page(run / "report" / "A.html")
    (run / "report" / "A.html").unlink()
    write_report(run)
    assert Page(run / "report" / "A.html").elements == by_workers.elements


def test_pages_are_made_where_the_workers_are_lost(tmp_path, caplog):
    run = write_dataset(tmp_path, ["A", "B", "C"])
    said = []
    with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
        workers.client.close()
        assert report_of_run(run, workers=workers, say=said.append) == run / "report.html"
    assert {page.name for page in (run / "report").iterdir()} == {"A.html", "B.html"}
    assert said == [f"report in {run / 'report.html'}"]
    assert "no report was written" not in caplog.text


def test_a_page_that_cannot_be_made_is_named_and_the_others_are_there(tmp_path, caplog):
    run = write_dataset(tmp_path, ["A", "B"])
    (run / "report" / "A.html").mkdir(parents=True)  # no file can take this place
    page = Page(write_report(run))
    assert "no page" in page.text
    assert "A: no page" in caplog.text
    assert [a["href"] for a in page.all("a")] == ["report/B.html"]


def test_a_folder_of_picks_has_a_report_with_the_tomogram_that_is_given(tmp_path):
    folder = write_picks(tmp_path / "picks")
    page = Page(write_report(folder))
    assert "Picks in picks" in page.text
    assert "the tomogram's file is not known" in page.text
    assert page.data is None
    tomogram = write_volume(tmp_path / "t.zarr", volume())
    page = Page(write_report(folder, tomogram=tomogram))
    assert [layer["kind"] for layer in page.data["layers"]] == ["segmentation", "picks"]


def test_histograms_count_every_row_once(tmp_path):
    values = np.random.default_rng(1).lognormal(8, 1, 5000)
    text = "n_voxels\n" + "".join(f"{value!r}\n" for value in values.tolist())
    (tmp_path / "picks.csv").write_text(text)
    found = histogram_of(tmp_path, "n_voxels", logarithmic=True, include=(100.0, 1e6))
    assert found.n == 5000
    assert found.counts == tuple(np.histogram(values, found.edges)[0].tolist())
    assert found.edges[0] <= 100
    assert found.edges[-1] >= 1e6


@pytest.fixture
def config(tmp_path):
    """A run over a small synthetic cell with the bundled model."""
    cell = make_cell(
        CellSettings((48, 64, 64), n_ribosomes=3, n_fas=1, n_distractors_each=0, seed=1)
    )
    paths = write_cell(cell, tmp_path / "cell")
    return RunConfig.model_validate(
        {"tomograms": paths["tomogram"], "output": tmp_path / "out", "keep_scores": False,
         "segment": [{"model": "demo_ribosome_fas"}],
         "pick": [{"class": "ribosome", "threshold": 0.2, "min_size": 200}]}
    )  # fmt: skip


def test_a_run_leaves_its_report_with_settings_and_inputs(two_workers, config):
    said: list[str] = []
    config = config.model_copy(update={"voxel_spacing_angstrom": 13.5})  # the header says 13.48
    report = run_pipeline(Session(two_workers), config, say=said.append)
    page = Page(config.output / "report.html")
    assert f"report in {config.output / 'report.html'}" in said
    n_picks = report.tomograms[0].n_picks["picks_ribosome"]
    assert n_picks > 0
    assert f"{n_picks} picks" in page.text
    assert "13.5 Å" in page.text
    assert str(config.tomograms) in page.text
    assert "model: demo_ribosome_fas" in page.text
    assert "score maps: not stored (keep_scores: false)" in page.text
    kinds = [layer["kind"] for layer in page.data["layers"]]
    assert kinds == ["segmentation", "picks"]


def test_a_run_whose_report_fails_is_done(two_workers, config, monkeypatch, caplog):
    def fail(*_args, **_how):
        raise MemoryError("none left")

    monkeypatch.setattr("deepict_dask.report.write.read_source", fail)
    report = run_pipeline(Session(two_workers), config)
    assert report.failed == []
    assert "no report was written: MemoryError: none left" in caplog.text
    assert not (config.output / "report.html").exists()


def test_a_failing_report_is_a_warning_and_never_an_error(tmp_path, caplog):
    said: list[str] = []
    with caplog.at_level(logging.WARNING, "deepict_dask"):
        assert report_of_run(tmp_path, say=said.append) is None
    assert "no report was written: ConfigError" in caplog.text
    assert said == []


def test_a_folder_that_is_neither_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "expected the output folder of a run or a folder of picks" in str(result.exception)


def test_the_command_says_where_the_report_is(run):
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 0
    assert result.output == f"report in {run / 'report.html'}\n"


def test_names_of_outputs_are_those_of_a_run():
    assert sources._EQUALIZED == run_outputs.EQUALIZED
    from deepict_dask.config import RegionSettings

    region = RegionSettings(name="a", model="b.h5")
    assert run_outputs.region_mask_of(region) == f"{sources._REGION}a.zarr"


def test_a_table_of_two_thousand_tomograms_is_one_usable_file(tmp_path):
    names = [f"TS_{i:04d}" for i in range(2000)]
    events = [
        {"tomogram": name, "state": "failed" if i % 7 == 0 else "done", "seconds": i}
        for i, name in enumerate(names)
    ]
    write_plan(tmp_path, {name: [] for name in names}, events)
    from deepict_dask.report.run_page import run_part
    from deepict_dask.report.sources import read_source

    thumbnail = "data:image/webp;base64," + "A" * 3500  # as large as they get
    part = run_part(read_source(tmp_path), dict.fromkeys(names, thumbnail), {})
    assert len(part) < 10 << 20
    assert part.index("TS_1995") < part.index("TS_0001")  # failures first
