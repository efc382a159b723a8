"""One of two processes that train together, on processors where they would have a GPU each.

Lightning starts its processes by the variables that the test sets; what they tell each other goes
through gloo instead of NCCL. Batch normalisation over processes is for GPUs alone.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import lightning.pytorch
import torch
from stand_in_training import Spots, small_config

from deepict_dask.training import fit

NETWORK = {"depth": 1, "initial_features": 2, "batch_norm": False}


def on_processors(trainer, **settings):
    """Return Lightning's trainer of two processes."""
    assert (settings["accelerator"], settings["devices"]) == ("gpu", "auto")
    there = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "sync_batchnorm": False}
    return trainer(**settings | there)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    folder = Path(asked["folder"])
    fit._on_gpu = lambda _device: True
    lightning.pytorch.Trainer = functools.partial(on_processors, lightning.pytorch.Trainer)
    spots = Spots(kill_at=asked["kill_at"], mark=folder.with_suffix(".killed"))
    config = small_config(folder, network=NETWORK, loss="cross_entropy")
    done = fit.train_network(config, data=spots, checkpoint_steps=2, resume=asked["resume"])
    print(json.dumps({"was_finished": done.was_finished, "rows": done.history}))
