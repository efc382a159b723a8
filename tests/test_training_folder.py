"""Whose training a folder has: finished, unfinished, of other settings, killed while it goes."""

from contextlib import suppress
from pathlib import Path

import pytest
from stand_in_training import Interrupted, Spots, killed, small_config

from deepict_dask.core.errors import LedgerError, OutputExistsError
from deepict_dask.training.fit import train_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def test_a_finished_training_is_not_run_again_and_another_one_is_not_mixed_with_it(folder):
    first = train_network(small_config(folder), data=Spots())
    written = first.model.stat().st_mtime_ns
    again = train_network(small_config(folder), data=Spots())
    assert again.was_finished
    assert again.best["val_dice"] == pytest.approx(first.best["val_dice"], abs=1e-6)
    assert first.model.stat().st_mtime_ns == written
    with pytest.raises(OutputExistsError, match="of other settings or data"):
        train_network(small_config(folder, learning_rate=0.02), data=Spots())
    with pytest.raises(OutputExistsError, match="of other settings or data"):
        train_network(small_config(folder), data=Spots(inputs={"cell": {"sha256": "1" * 64}}))
    with pytest.raises(OutputExistsError, match="of other settings or data"):
        train_network(small_config(folder, learning_rate=0.02), data=Spots(), resume=False)
    other = train_network(small_config(folder, learning_rate=0.02), data=Spots(), overwrite=True)
    assert other.card["settings"]["optimizer"]["learning_rate"] == 0.02


def test_other_processes_do_not_wait_for_one_that_finds_the_training_finished(folder, monkeypatch):
    train_network(small_config(folder), data=Spots())
    monkeypatch.setattr("deepict_dask.training.fit._Wishes.first", False)
    monkeypatch.setattr("deepict_dask.training.fit.wait_for_first", lambda *_a: 1 / 0)
    assert train_network(small_config(folder), data=Spots()).was_finished
    with pytest.raises(ZeroDivisionError):
        train_network(small_config(folder), data=Spots(), resume=False)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_kill_while_another_training_is_removed_leaves_no_checkpoint_of_unknown_owner(
    folder, monkeypatch, backwards
):
    """Whatever the order in which the folder's files come: each removal may be the last."""
    unlink, glob, other = Path.unlink, Path.glob, small_config(folder, loss="tversky")

    def dies_at(number):
        left = iter(range(number))

        def remove(path, **options):
            if next(left, None) is None:
                raise RuntimeError("killed")
            unlink(path, **options)

        return remove

    for number in range(12):
        with pytest.raises(RuntimeError, match="killed"):
            train_network(
                small_config(folder), data=Interrupted(6, killed), resume=False, overwrite=True
            )
        begun = (folder / "checkpoints/request").read_text()
        with monkeypatch.context() as patch, suppress(RuntimeError):
            patch.setattr(Path, "unlink", dies_at(number))
            patch.setattr(Path, "glob", lambda *a: sorted(glob(*a), reverse=backwards))
            train_network(other, data=Interrupted(0, killed), overwrite=True)
        if (folder / "checkpoints/last.ckpt").exists():
            assert (folder / "checkpoints/request").read_text() == begun
    assert not (folder / "checkpoints/last.ckpt").exists()


def test_unfinished_work_of_other_settings_is_refused_until_it_may_go(folder):
    with pytest.raises(RuntimeError, match="killed"):
        train_network(small_config(folder), data=Interrupted(6, killed))
    with pytest.raises(LedgerError, match="unfinished training of other settings"):
        train_network(small_config(folder, loss="tversky"), data=Spots())
    assert not train_network(
        small_config(folder, loss="tversky"), data=Spots(), resume=False
    ).was_finished
