"""A small dataset of noise, a small network, and what a run over them is."""

from __future__ import annotations

import csv

import mrcfile
import numpy as np
import yaml

from deepict_dask.config import RunConfig

SHAPE = (40, 48, 48)
SPACING = 12.0
RECORDS = {"run.json", "stages.json"}
"""Files that hold paths and times."""


def write_network(path, names=("a",)):
    """Write a 3D network with random weights and one class, a, or several."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2, n_classes=len(names))).eval()
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    save_model(path, network, class_names=names, voxel_spacing_angstrom=SPACING)
    return path


def write_tomogram(path, seed, *, shape=SHAPE):
    """Write noise as MRC."""
    voxels = np.random.default_rng(seed).normal(size=shape).astype("float32")
    mrcfile.write(path, voxels, voxel_size=SPACING, overwrite=True)
    return path


def threshold_of(folder, network, workers):
    """Return a threshold that about a hundredth of the scores of a tomogram are above."""
    import zarr

    from deepict_dask.config import SegmentSettings
    from deepict_dask.jobs.segmenting.segment import segment_volume
    from deepict_dask.jobs.session import Session

    write_tomogram(folder / "t.mrc", 0)
    settings = SegmentSettings(model=str(network))
    segment_volume(Session(workers), folder / "t.mrc", folder / "t.zarr", settings)
    return round(float(np.quantile(zarr.open_array(folder / "t.zarr" / "0")[:], 0.99)), 6)


def config_of(folder, output, network, threshold, *, in_flight=None, tomograms="*.mrc"):
    """Return the config of a run from tomograms to picks."""
    return RunConfig.model_validate(
        {
            "tomograms": folder / tomograms, "output": output, "chunks": (16, 24, 24),
            "segment": [{"model": str(network)}],
            "pick": [{"class": "a", "threshold": threshold}],
            "cluster": {"tomograms_in_flight": in_flight},
        }
    )  # fmt: skip


def results_of(output):
    """Return the bytes of all files of a run but records of paths and times."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in RECORDS | {"summary.csv"}
        and not {".deepict-dask", "report", "report.html"} & {*path.parts}
    }  # fmt: skip


def rows_of(output):
    """Return the rows of a run's summary."""
    with (output / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_yaml(folder, network, threshold, **cluster):
    """Write the config of a run over the MRC files of a folder."""
    values = {
        "tomograms": "*.mrc", "output": "out", "chunks": [16, 24, 24],
        "segment": [{"model": str(network)}], "pick": [{"class": "a", "threshold": threshold}],
        "cluster": cluster,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"
