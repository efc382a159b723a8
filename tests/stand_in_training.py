"""Small training data that are a function of seed and step, and a program that trains on them."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deepict_dask.config.training import TrainConfig


@dataclass
class Spots:
    """Bright spots in noise; what is above the noise is the class."""

    class_names: tuple[str, ...] = ("spot",)
    edge: int = 16
    flat: bool = False
    seed: int = 0
    validates: bool = True
    empty: bool = False
    """No patch has the class."""
    kill_at: int = -1
    """Number of the batch at which the process is killed, where ``mark`` is not yet there."""
    mark: Path | None = None
    voxel_spacing_angstrom: float = 10.0
    inputs: dict = field(default_factory=lambda: {"cell": {"sha256": "0" * 64}})

    def batch(self, step: int):
        if step == self.kill_at and self.mark is not None and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._drawn(np.random.default_rng([self.seed, step]))

    def validation_batches(self, limit=None):
        assert limit is None or limit >= 2
        for number in range(2 if self.validates else 0):
            yield self._drawn(np.random.default_rng([self.seed, 1, number]))

    def validation_ends(self, limit=None):
        for patches, _ in self.validation_batches(limit):
            yield [patches.shape[2:]] * len(patches)

    def counts(self):
        return {}

    def _drawn(self, rng):
        shape = (1 if self.flat else self.edge, self.edge, self.edge)
        signal_of = np.zeros((2, len(self.class_names), *shape), np.float32)
        for target in signal_of.reshape(-1, *shape) if not self.empty else ():
            z, y, x = (int(rng.integers(0, max(1, n - 6))) for n in shape)
            target[z : z + 6, y : y + 6, x : x + 6] = 1
        noise = rng.normal(size=(2, 1, *shape)).astype(np.float32)
        weights = np.arange(1, 1 + len(self.class_names)).reshape(1, -1, 1, 1, 1)
        return noise + 2 * (signal_of * weights).sum(1, keepdims=True).astype(np.float32), signal_of


class Interrupted:
    """Data that stop the training at a batch, once."""

    def __init__(self, at, stop, **spots):
        self.at, self.stop, self.spots = at, stop, Spots(**spots)

    def __getattr__(self, name):
        return getattr(self.spots, name)

    def batch(self, step):
        if step == self.at:
            self.at = -1
            self.stop()
        return self.spots.batch(step)


def killed():
    """Stop the training."""
    raise RuntimeError("killed")


def small_config(folder, *, network=None, classes=("spot",), patches=(16, 16, 16), **optimizer):
    """Return a training of seconds."""
    small = {"depth": 1, "initial_features": 2, "decoder_dropout": 0.2}
    steps = {"epochs": 3, "steps_per_epoch": 4, "learning_rate": 0.01}
    return TrainConfig(
        tomograms="cells.csv",
        output=Path(folder),
        network=network or small,
        classes={name: {"labels": name} for name in classes},
        patches={"shape": patches},
        optimizer=steps | optimizer,
        cluster={"device": "cpu"},
    )


def same_weights(one, other):
    """Say whether two model files hold the same bytes of each weight."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(
        first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first
    )


if __name__ == "__main__":
    import torch

    from deepict_dask.training.fit import train_network

    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    where = Path(asked["folder"])
    spots = Spots(kill_at=asked["kill_at"], mark=where.with_suffix(".killed"))
    train_network(small_config(where), data=spots, checkpoint_steps=asked["checkpoint_steps"])
