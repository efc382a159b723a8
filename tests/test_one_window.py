"""A tomogram that is one window: what is planned for it, and who measures it."""

from __future__ import annotations

import pytest
from dataset_scenes import write_network, write_tomogram

from deepict_dask.config import SegmentSettings
from deepict_dask.core.geometry import Grid
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.predict_and_label import LabelledChannel, PredictAndLabel
from deepict_dask.jobs.segmenting import windows as windows_job
from deepict_dask.jobs.segmenting.chosen_model import choose_model
from deepict_dask.jobs.segmenting.windows import joint_op
from deepict_dask.jobs.session import Session
from deepict_dask.labelling import LabelReduction, SelectSettings


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_window_is_not_planned_to_write_beyond_the_volume(network, device):
    """A volume of 464 planes is written in one piece of 512, of which 48 are not there."""
    settings = SegmentSettings(model=str(network))
    joint = joint_op({settings: choose_model(settings)}, device)
    shape, written = (464, 928, 928), (512, 1024, 1024)
    section = LabelledChannel(0, LabelReduction(shape, SelectSettings(threshold=0.5)))
    op = PredictAndLabel(joint, (section,), (128, 128, 128), (None,))
    grid = Grid(shape, written, op.halo, op.align, one_shape=True)
    exact = Grid(shape, shape, op.halo, op.align, one_shape=True)
    assert op.bytes_of(grid) == op.bytes_of(exact)


def test_statistics_of_a_tomogram_that_is_one_window_feed_several_workers(
    network, two_workers, tmp_path, monkeypatch
):
    seen = []
    measure = windows_job.measure_statistics

    def noted(session, reader, *, name, blocks=None):
        seen.append(blocks or tuple(2 * n for n in session.chunks))
        return measure(session, reader, name=name, blocks=blocks)

    monkeypatch.setattr(windows_job, "measure_statistics", noted)
    settings = SegmentSettings(model=str(network))
    session = Session(two_workers, chunks=(16, 16, 16))
    shape = (32, 48, 64)
    write_tomogram(tmp_path / "t.mrc", 0, shape=shape)
    op = joint_op({settings: choose_model(settings)}, "cpu")
    measured = [
        windows_job.measured_op(
            session, open_volume(tmp_path / "t.mrc"), op, Grid(shape, write)
        ).ops[0]
        for write in (shape, (32, 24, 32))
    ]
    assert len(seen) == 2
    assert all(Grid(shape, blocks).n_blocks > 1 for blocks in seen)
    assert measured[0].std == pytest.approx(measured[1].std, rel=1e-12)
