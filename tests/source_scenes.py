"""Sources of tomograms as other programs leave them on disk, without a voxel in them."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.io.dataset import read_dataset

SHAPE = (3, 4, 5)
RELION = (
    "rlnTomoName", "rlnTomoTiltSeriesPixelSize", "rlnTomoTomogramBinning",
    "rlnTomoReconstructedTomogram",
)  # fmt: skip
REC = "Tomograms/job009/tomograms/rec_{}.mrc"


def mrc(path, spacing=13.48, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    mrcfile.write(path, np.zeros(shape, "int8"), voxel_size=spacing, overwrite=True)
    return path


def zarr(path, scale=10.0, shape=SHAPE):
    """An OME-Zarr 0.4 image as copick and the portal write it, its one chunk left out."""
    (path / "0").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    steps = [{"type": "scale", "scale": [scale] * 3}]
    image = {
        "axes": axes, "version": "0.4",
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }  # fmt: skip
    (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    array = {
        "zarr_format": 2, "shape": list(shape), "chunks": list(shape), "dtype": "|u1",
        "compressor": None, "fill_value": 0, "order": "C", "filters": None,
        "dimension_separator": "/",
    }  # fmt: skip
    (path / "0" / ".zarray").write_text(json.dumps(array))
    return path


def touch(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(source):
    return [entry.name for entry in read_dataset(Path(source)).entries]


def by_name(source):
    return {entry.name: entry for entry in read_dataset(Path(source)).entries}


def run(*words):
    """Run the command; return what it printed and the error that `main` would show."""
    return CliRunner().invoke(app, ["dataset", "list", *map(str, words)])


def star(path, rows, columns=("rlnTomoName", "rlnTomoReconstructedTomogram")):
    heads = "\n".join(f"_{column} #{number}" for number, column in enumerate(columns, 1))
    lines = "\n".join("  ".join(map(str, row)) for row in rows)
    return touch(path, f"\n# version 50001\n\ndata_global\n\nloop_\n{heads}\n{lines}\n\n")


def make_empiar(tmp_path):
    """What `fetch EMPIAR-10988` leaves behind, with the names of that entry."""
    root = tmp_path / "10988"
    for part in ("DEF", "VPP"):
        for name in ("TS_001", "TS_01"):
            mrc(root / part / "tomograms" / f"{name}.rec")
            mrc(root / part / "labels" / f"{name}_membranes.mrc")
            touch(root / part / "particle_lists" / f"{name}_cyto_ribosomes.csv", "1,2,3\n")
            touch(root / part / "particle_lists" / f"{name}_fas.csv", "1,2,3\n")
    mrc(root / "DEF" / "labels" / "180426_TS_001.labels.mrc")
    mrc(root / "VPP" / "labels" / "TS_01_cytosol.mrc")
    mrc(root / "VPP" / "labels" / "TS_999_cytosol.mrc")
    touch(root / "VPP" / "metadata" / "TS_001.rawtlt", "0\n")
    return root


def make_copick(tmp_path):
    """A project as copick 1.27 lays it out, overlay and static in one folder."""
    root = tmp_path / "project"
    for run_name in ("TS_1", "TS_2"):
        folder = root / "ExperimentRuns" / run_name
        zarr(folder / "VoxelSpacing10.000" / "wbp.zarr", scale=10.012)
        zarr(folder / "VoxelSpacing10.000" / "wbp_sobel_features.zarr")
        zarr(folder / "Segmentations" / "10.000_bob_1_membrane.zarr")
        zarr(folder / "Segmentations" / "10.000_bob_1_all-multilabel.zarr")
        zarr(folder / "Segmentations" / "20.000_bob_1_nucleus.zarr")
        touch(folder / "Picks" / "bob_1_ribosome.json", "{}")
        touch(folder / "Picks" / "ann_2_ribosome.json", "{}")
    return root


def make_portal(tmp_path):
    """A data set as the portal's bucket has it."""
    root = tmp_path / "10000"
    for run_name in ("TS_026", "TS_027"):
        home = root / run_name / "Reconstructions" / "VoxelSpacing13.480"
        zarr(home / "Tomograms" / "100" / f"{run_name}.zarr", scale=1.0)
        mrc(home / "Tomograms" / "100" / f"{run_name}.mrc")
        touch(home / "Tomograms" / "100" / "tomogram_metadata.json", '{"processing": "raw"}')
        zarr(home / "Annotations" / "114" / "membrane-1.0_segmentationmask.zarr")
        mrc(home / "Annotations" / "114" / "membrane-1.0_segmentationmask.mrc")
        touch(home / "Annotations" / "114" / "membrane-1.0.json", "{}")
        touch(home / "Annotations" / "101" / "cytosolic_ribosome-1.0_orientedpoint.ndjson")
        mrc(root / run_name / "TiltSeries" / "100" / f"{run_name}.mrc")
    return root
