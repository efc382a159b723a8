"""A DeePiCt project folder like the one that the golden results were made in."""

from __future__ import annotations

import copy
import gzip
import shutil
from pathlib import Path

import mrcfile
import pytest
import yaml

from deepict_dask.deepict_project import run_deepict
from deepict_dask.jobs.session import Session

CASES = [
    "nomask_c1_min50",
    "nomask_c3_min300_max1500_border",
    "region_intersection_c1_min100",
    "region_contact_c1_min100",
    "region_colocalization_r8_c1_min100",
]
POST = "postprocessing_clustering"


@pytest.fixture(scope="session")
def unpacked(golden, tmp_path_factory) -> Path:
    """The golden inputs and results, unpacked once."""
    folder = tmp_path_factory.mktemp("deepict")
    for packed in (golden / "deepict").rglob("*.mrc.gz"):
        plain = folder / packed.relative_to(golden / "deepict").with_suffix("")
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
    with mrcfile.open(folder / "inputs/tomo.mrc") as tomo:
        mrcfile.write(folder / "inputs/tomo_crop.mrc", tomo.data[:95, :150, :138].copy())
    return folder


@pytest.fixture(autouse=True)
def folder(golden, unpacked, tmp_path, monkeypatch) -> Path:
    """A project folder like the one the golden results were made in, and the current folder."""
    (tmp_path / "inputs").symlink_to(unpacked / "inputs")
    (tmp_path / "models").symlink_to(golden / "deepict/models")
    lists = golden / "deepict/inputs/true_blobs_first50_xyz.csv"
    (tmp_path / "metadata.csv").write_text(
        (golden / "deepict/configs/metadata_eval.csv")
        .read_text()
        .replace("inputs/true_blobs_first50_xyz.csv", str(lists))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def session(two_workers):
    return Session(two_workers, chunks=(64, 64, 64))


@pytest.fixture
def blob(golden) -> dict:
    """The golden config of the trained model."""
    return yaml.safe_load((golden / "deepict/configs/blob.yaml").read_text())


def changed(values: dict, **updates) -> dict:
    """Return a config with values at dotted names (dots written as double underscores)."""
    values = copy.deepcopy(values)
    for name, value in updates.items():
        *sections, last = name.split("__")
        target = values
        for section in sections:
            target = target[section]
        if value is DROP:
            del target[last]
        else:
            target[last] = value
    return values


DROP = object()


def write(values: dict, name="config.yaml") -> Path:
    path = Path(name)
    path.write_text(yaml.safe_dump(values))
    return path


def case_config(golden, blob, case, **updates) -> dict:
    """Return the config of a golden post-processing case; the probability map is there already."""
    params = yaml.safe_load((golden / "deepict/postproc" / case / "params.yaml").read_text())
    updates = {"prediction__active": False, **updates}
    return changed({**blob, POST: params[POST]}, tomos_sets__prediction_list=[params["tomo"]],
                   **updates)  # fmt: skip


def place(tomo: str, model="blob_D2_IF4_BN", label="blob") -> Path:
    return Path("out/predictions", model, tomo, label)


def give_map(unpacked, tomo: str, name="blob_D2_IF4_BN__tomo") -> Path:
    """Put the reference's probability map where the reference puts it."""
    place(tomo).mkdir(parents=True)
    shutil.copy(unpacked / f"pred/{name}.mrc", place(tomo) / "probability_map.mrc")
    return place(tomo)


def run(session, values) -> list[str]:
    lines: list[str] = []
    report = run_deepict(session, write(values), say=lines.append)
    assert not report.failed
    return lines


@pytest.fixture
def small(unpacked, folder, blob) -> dict:
    """A config over one small tomogram."""
    voxels = mrcfile.read(unpacked / "inputs/tomo.mrc")[:44, :44, :44].copy()
    mrcfile.write(folder / "small.mrc", voxels)
    Path("metadata.csv").write_text("tomo_name,tomo,lamella_file\na,small.mrc,\n")
    return changed(blob, tomos_sets__prediction_list=["a"])


@pytest.fixture
def flat(golden) -> dict:
    """The golden 2D config with what was given on the command line."""
    shutil.copy(golden / "deepict/twod/model2d_nf2.h5", "organelle.h5")
    Path("prediction.csv").write_text("data,id\ninputs/tomo.mrc,cell_1\n")
    values = yaml.safe_load((golden / "deepict/twod/cfg2d.yaml").read_text())
    values["data"] = {"prediction_data": "prediction.csv", "output_dir": "out2d"}
    values["prediction"]["model"] = "organelle.h5"
    return values
