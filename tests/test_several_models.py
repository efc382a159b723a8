"""Several models in one run: each window read once, scores as of each model alone."""

from __future__ import annotations

import shutil

import mrcfile
import numpy as np
import pytest
import torch

from deepict_dask import tomogram_stages
from deepict_dask.config import RunConfig, SegmentSettings
from deepict_dask.core.errors import ConfigError, ModelFileError, WorkFailedError
from deepict_dask.engine import arrays, map_chunks
from deepict_dask.engine.progress import Progress
from deepict_dask.io.dataset import list_tomograms
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.runs.stage_record import StageRecord
from deepict_dask.jobs.segmenting import windows as segment_windows
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.segmenting.windows import segment_together
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.pipeline import run_pipeline

SHAPE = (32, 40, 200)


def make_model(path, *, depth, n_classes, names, seed):
    torch.manual_seed(seed)
    network = UNet3D(UNet3DSettings(depth=depth, initial_features=2, n_classes=n_classes)).eval()
    save_model(path, network, class_names=names, voxel_spacing_angstrom=10.0)
    return str(path)


def read_all(path, **options):
    reader = open_volume(path, **options)
    from deepict_dask.core.geometry import Box

    return reader.read(Box.whole(reader.header.shape))


@pytest.fixture
def tomogram(tmp_path):
    path = tmp_path / "t.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(np.random.default_rng(0).normal(size=SHAPE).astype("float32"))
        mrc.voxel_size = 10.0
    return path


@pytest.fixture
def models(tmp_path):
    """Networks of different depth, one with two classes."""
    return (
        make_model(tmp_path / "one.safetensors", depth=1, n_classes=1, names=["a"], seed=1),
        make_model(tmp_path / "two.safetensors", depth=2, n_classes=2, names=["b", "c"], seed=2),
    )


def test_models_that_run_together_give_the_scores_of_each_alone(
    two_workers, tomogram, models, tmp_path
):
    session = Session(two_workers, chunks=(16, 24, 24))
    together = {tmp_path / f"{i}.zarr": SegmentSettings(model=m) for i, m in enumerate(models)}
    segment_together(session, tomogram, together)
    for i, settings in enumerate(together.values()):
        segment_volume(session, tomogram, tmp_path / f"alone{i}.zarr", settings)
    for name in ("b", "c"):
        ours = read_all(tmp_path / "1.zarr", class_name=name)
        alone = read_all(tmp_path / "alone1.zarr", class_name=name)
        np.testing.assert_allclose(ours, alone, atol=1e-5)
    np.testing.assert_allclose(
        read_all(tmp_path / "0.zarr"), read_all(tmp_path / "alone0.zarr"), atol=1e-5
    )
    assert open_volume(tmp_path / "1.zarr", class_name="b").header.voxel_spacing_angstrom == 10.0


def test_a_model_that_is_trained_anew_meanwhile_makes_no_mixed_scores(
    two_workers, tomogram, models, tmp_path
):
    class TrainsAnew(Progress):
        def stage(self, name, total, done=0):
            if name == "segment":
                make_model(models[0], depth=1, n_classes=1, names=["a"], seed=9)
            return super().stage(name, total, done)

    chunks, settings = (16, 24, 24), SegmentSettings(model=models[0])
    session = Session(two_workers, chunks=chunks, progress=TrainsAnew(shown=False))
    with pytest.raises(ModelFileError, match=r"one\.safetensors: expected .* replaced meanwhile"):
        segment_volume(session, tomogram, tmp_path / "s.zarr", settings)
    assert not (tmp_path / "s.zarr").exists()
    for name in ("s", "again"):
        segment_volume(
            Session(two_workers, chunks=chunks), tomogram, tmp_path / f"{name}.zarr", settings
        )
    assert np.array_equal(read_all(tmp_path / "s.zarr"), read_all(tmp_path / "again.zarr"))


def test_two_models_read_each_window_of_the_tomogram_once(
    one_worker, tomogram, models, tmp_path, monkeypatch
):
    seen = []
    original = arrays.read_windows

    def counted(sources, block):
        seen.append(block.number)
        return original(sources, block)

    monkeypatch.setattr(arrays, "read_windows", counted)
    monkeypatch.setattr(
        segment_windows, "_LARGEST_WINDOW_BYTES", 28 << 20
    )  # less than the whole needs
    session = Session(one_worker, chunks=(16, 24, 24))
    wanted = {tmp_path / f"{i}.zarr": SegmentSettings(model=m) for i, m in enumerate(models)}
    segment_together(session, tomogram, wanted)
    assert len(seen) == len(set(seen)) > 1


def test_a_run_with_two_models_picks_every_class_and_goes_on_with_what_is_missing(
    two_workers, tomogram, models, tmp_path
):
    config = RunConfig(
        tomograms=tomogram,
        output=tmp_path / "out",
        chunks=(16, 24, 24),
        segment=tuple(SegmentSettings(model=m) for m in models),
        pick=tuple({"class": name, "threshold": 0.5} for name in "abc"),
    )
    lines: list[str] = []
    run_pipeline(Session(two_workers), config, say=lines.append)
    folder = tmp_path / "out" / "t"
    assert {path.name for path in folder.iterdir()} >= {
        "scores_one.zarr", "scores_two.zarr", "picks_a", "picks_b", "picks_c",
    }  # fmt: skip
    before = read_all(folder / "scores_two.zarr", class_name="c")
    make_model(tmp_path / "one.safetensors", depth=1, n_classes=1, names=["a"], seed=9)
    lines.clear()
    run_pipeline(Session(two_workers), config, say=lines.append)
    assert "t: scores_two.zarr is up to date" in lines
    assert "t: wrote scores_one.zarr" in lines
    assert "t: picks_c is up to date" in lines
    assert np.array_equal(read_all(folder / "scores_two.zarr", class_name="c"), before)


def test_corrected_class_names_are_those_of_the_map(
    two_workers, tomogram, models, tmp_path, monkeypatch
):
    """Unfinished work of other names is not taken up."""

    def ask(*names):
        settings = SegmentSettings(model=models[1], class_names=names)
        segment_together(Session(two_workers), tomogram, {tmp_path / "s.zarr": settings})

    def stopped(*arguments, **options):
        map_chunks(*arguments, **options)
        raise WorkFailedError("stopped by a test")

    with monkeypatch.context() as patch:
        patch.setattr(segment_windows, "map_chunks", stopped)
        with pytest.raises(WorkFailedError, match="by a test"):
            ask("b", "c")
    assert (tmp_path / "s.zarr.partial").exists()
    ask("c", "b")
    assert open_volume(tmp_path / "s.zarr").header.class_names == ("c", "b")


def test_several_classes_are_refused_for_a_file_of_one_volume(
    two_workers, tomogram, models, tmp_path
):
    target = tmp_path / "two.mrc"
    with pytest.raises(ConfigError, match=r"ending in \.zarr for the classes .*--class"):
        segment_volume(Session(two_workers), tomogram, target, SegmentSettings(model=models[1]))
    assert not list((tmp_path / "two.mrc.partial").rglob("c/*"))


def stop(*_arguments, **_options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "name"), [(StageRecord, "note"), (tomogram_stages, "segment_volume")]
)
def test_a_replaced_map_is_never_taken_for_the_one_before_it(
    two_workers, tomogram, models, tmp_path, monkeypatch, place, name
):
    def go(flips):
        said = []
        segment = (
            SegmentSettings(model=models[1], compat="deepict"),
            SegmentSettings(model=models[0], average_flips=flips),
        )
        config = RunConfig(
            tomograms=tomogram, output=tmp_path / "out", chunks=(16, 24, 24), segment=segment
        )
        run_pipeline(Session(two_workers), config, say=said.append)
        return said, read_all(tmp_path / "out/t/scores_one.zarr")

    _, before = go(flips=False)
    shutil.rmtree(tmp_path / "out/t/scores_two.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stop)
        with pytest.raises(KeyboardInterrupt):
            go(flips=True)
    assert not np.array_equal(read_all(tmp_path / "out/t/scores_one.zarr"), before)
    if name == "segment_volume":  # it is noted before the models after it
        said, _ = go(flips=True)
        assert "t: scores_one.zarr is up to date" in said
    _, again = go(flips=False)
    np.testing.assert_array_equal(again, before)


IN, EVERYWHERE = {"region": "corner"}, {}
IN_BOTH = {"contacts": ({"region": "corner"}, {"region": "other"})}


@pytest.mark.parametrize(
    ("sections", "makes_region", "is_limited"),
    [
        ([("a", IN), ("a", IN), ("b", EVERYWHERE)], False, True),
        ([("a", IN), ("a", EVERYWHERE)], False, False),
        ([("a", IN), ("a", IN_BOTH)], False, False),
        ([("a", EVERYWHERE), ("b", IN)], False, False),
        ([("a", IN)], True, False),
    ],
)
def test_published_scores_are_limited_to_a_region_only_where_all_that_use_them_need_it(
    two_workers, tomogram, models, tmp_path, sections, makes_region, is_limited
):
    mask = np.zeros(SHAPE, "int8")
    mask[:20, :20, :20] = 1
    for name in ("corner", "other"):
        mrcfile.write(tmp_path / f"{name}.mrc", mask, voxel_size=10.0)
    regions = [{"name": name, "path": tmp_path / f"{name}.mrc"} for name in ("corner", "other")]
    if makes_region:
        regions.append({"name": "made", "model": models[0], "compat": "deepict"})
    published = SegmentSettings(model=models[0], compat="deepict")
    config = RunConfig(
        tomograms=tomogram, output=tmp_path / "out", chunks=(16, 24, 24), regions=regions,
        segment=(published, SegmentSettings(model=models[1])),
        pick=[
            {"class": name, "name": f"{name}{i}", "threshold": 0.9, **needed}
            for i, (name, needed) in enumerate(sections)
        ],
    )  # fmt: skip
    folder, target = tmp_path / "out", tmp_path / "alone.zarr"
    folder.mkdir()
    session, (entry,) = Session(two_workers), list_tomograms(tomogram)
    stages = tomogram_stages.TomogramStages(
        session, config, entry, folder, StageRecord(folder), print
    )
    made = stages.segment(tomogram)[published]
    region = tmp_path / "corner.mrc" if is_limited else None
    segment_volume(session, tomogram, target, published, region=region)
    np.testing.assert_array_equal(read_all(made), read_all(target))


def test_two_pick_sections_of_one_class_need_names(two_workers, tomogram, models, tmp_path):
    def config(*names):
        return RunConfig(
            tomograms=tomogram,
            output=tmp_path / "out",
            segment=(SegmentSettings(model=models[0]),),
            pick=tuple({"class": "a", "name": name} for name in names),
        )

    with pytest.raises(ConfigError, match="expected different names"):
        run_pipeline(Session(two_workers), config(None, None))
    run_pipeline(Session(two_workers), config(None, "strict"))
    assert (tmp_path / "out" / "t" / "picks_strict").is_dir()


def test_a_class_of_two_models_is_refused_until_they_have_names_of_their_own(
    two_workers, tomogram, models, tmp_path
):
    again = make_model(tmp_path / "v2.safetensors", depth=1, n_classes=1, names=["a"], seed=3)

    def config(**second):
        return RunConfig(
            tomograms=tomogram,
            output=tmp_path / "out",
            segment=({"model": models[0]}, {"model": again, **second}),
            pick=({"class": "a", "name": "v1"}, {"class": "v2" if second else "a", "name": "v2"}),
        )

    with pytest.raises(ConfigError, match=r"found a of .*one.* and .*v2.*class_names"):
        run_pipeline(Session(two_workers), config())
    assert not (tmp_path / "out").exists()
    run_pipeline(Session(two_workers), config(class_names=["v2"]))
    found = [(tmp_path / f"out/t/picks_{name}/picks.csv").read_bytes() for name in ("v1", "v2")]
    assert found[0] != found[1]
