"""A run that faults are made for: its inputs, its command, how far it is, what it gives."""

from __future__ import annotations

import json

import mrcfile
import numpy as np
import zarr
from programs import files_of, inside, marks, store_of, times_of

__all__ = ["CHUNK", "FaultRun", "threshold_of", "write_inputs"]

SHAPE = (128, 128, 256)
CHUNK = 32
MEMORY = "400MiB"
"""So little that the tomogram is cut into 64 windows."""


def write_inputs(folder):
    """Write a noisy tomogram and a small network with random weights."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

    noise = np.random.default_rng(5).normal(size=SHAPE).astype("float32")
    mrcfile.write(folder / "cell.mrc", noise, voxel_size=10)
    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    path = folder / "model.safetensors"
    save_model(path, network, class_names=("ribosome",), voxel_spacing_angstrom=10.0)
    return folder


class FaultRun:
    """One run's folder, command and progress."""

    def __init__(self, folder, inputs, threshold):
        self.command = _write_config(folder, inputs, threshold)
        self.cell = folder / "out" / "cell"
        self.scores = self.cell / "scores_model.zarr"
        self.partial = self.cell / "scores_model.zarr.partial"
        self.picks = self.cell / "picks_0.partial"
        self.n_windows = 0

    @property
    def n_done(self):
        return sum(marks(self.partial))

    @property
    def chunks(self):
        """When each chunk of the score map was written."""
        is_final = self.scores.exists()
        times = times_of(self.scores if is_final else store_of(self.partial))
        if not is_final and self.scores.exists():  # it got its final name meanwhile
            times = times_of(self.scores)
        return {n: t for n, t in times.items() if n.startswith("0/c/") and n[-1] != "l"}

    def moments(self, n_windows):
        """Conditions that become true one after another over a run's life."""
        yield self.partial.exists
        for n in range(1, n_windows):
            yield lambda n=n: self.n_done >= n or self.scores.exists()
        yield self.scores.exists
        yield self.is_labelling
        yield lambda: inside(self.picks, "segmentation.zarr/0/c").exists() or self._picked

    def is_labelling(self):
        return inside(self.picks, "nodes").exists() or self._picked

    @property
    def _picked(self):
        return (self.cell / "picks_0" / "run.json").exists()

    def results(self):
        """Digests of all files but the one that holds times."""
        return {n: d for n, d in files_of(self.cell).items() if not n.endswith("run.json")}


def _write_config(folder, inputs, threshold):
    """Write the YAML of a run; return its command."""
    values = {
        "tomograms": str(inputs / "cell.mrc"),
        "output": str(folder / "out"),
        "chunks": [CHUNK] * 3,
        "segment": [{"model": str(inputs / "model.safetensors")}],
        "pick": [{"threshold": threshold, "label_map": True}],
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(json.dumps(values))
    return ("run", folder / "run.yaml", "--resume", "--no-progress", "--memory", MEMORY)


def threshold_of(run):
    """Return a threshold that leaves a few hundred small clusters of a finished run's scores."""
    return round(float(np.quantile(zarr.open_array(run.scores / "0", mode="r")[:], 0.99)), 6)
