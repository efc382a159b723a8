"""Folders as runs and picks leave them, written in a moment and without any network."""

from __future__ import annotations

import json

import numpy as np

from deepict_dask.core.geometry import Box
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.spectrum import write_spectrum

SHAPE = (24, 40, 48)
SPACING = 10.0
CENTRES = ((6, 10, 12), (12, 20, 24), (18, 30, 36))
RADIUS = 4


def write_volume(path, array):
    header = VolumeHeader(array.shape, array.dtype.name, SPACING)
    writer = create_ome_zarr(path, header, chunks=(16, 16, 16))
    for z in range(0, array.shape[0], 16):
        for y in range(0, array.shape[1], 16):
            for x in range(0, array.shape[2], 16):
                stop = tuple(min(a + 16, n) for a, n in zip((z, y, x), array.shape, strict=True))
                box = Box((z, y, x), stop)
                writer.write(box, array[box.slices])
    return path


def balls():
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    near = [((grid - centre) ** 2).sum(-1) <= RADIUS**2 for centre in CENTRES]
    return np.any(near, axis=0)


def volume():
    noise = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    return noise - 4 * balls()


def write_picks(folder, *, regions=(), settings=(), n=3, method="components"):
    """Write a folder of picks; ``regions`` are masks by name."""
    import pandas as pd

    folder.mkdir(parents=True)
    n_voxels = int(balls().sum()) // len(CENTRES)
    rows = [
        {"score": 0.9 - 0.1 * i, "x": x, "y": y, "z": z, "n_voxels": n_voxels + i, "label": i + 1,
         "class_name": "ribosome", "distance_cytosol_nm": 5.0 * i if i < 2 else np.nan}
        for i, (z, y, x) in enumerate(CENTRES[:n])
    ]  # fmt: skip
    columns = ["score", "x", "y", "z", "n_voxels", "label", "class_name", "distance_cytosol_nm"]
    table = pd.DataFrame(rows, columns=columns)
    if method == "components":
        write_volume(folder / "segmentation.zarr", balls().astype("uint8"))
        table.rename(columns={"score": "score_mean"}).to_parquet(folder / "clusters.parquet")
    else:
        table = table[["score", "x", "y", "z", "class_name"]]
    table.to_csv(folder / "picks.csv", index=False)
    used = {
        "class_name": "ribosome", "threshold": 0.5, "min_size": 100, "max_size": 400,
        "region": "cytosol", "distance_limit_nm": 100.0, "method": method, **dict(settings),
    }  # fmt: skip
    record = {
        "versions": {"deepict-dask": "0.1.0"},
        "inputs": {"regions": {name: str(path) for name, path in dict(regions).items()}},
        "request": {"settings": used},
        "n_picks": len(table),
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_plan(output, tomograms, events, **facts):
    """Write the journal of a run: outputs by tomogram, and what happened."""
    folder = output / ".deepict-dask"
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"run": "r1", "started": "2026-01-01T10:00:00+00:00", "versions": {"zarr": "3.1.6"},
            "by": {"user": "ada", "host": "node7"}, **facts, "tomograms": tomograms}  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    lines = [json.dumps({"run": "r1", **event}) + "\n" for event in events]
    (folder / "events.jsonl").write_text("".join(lines))


def write_run(root, name="TS_1", *, config=(), outputs=None):
    """Write a finished run of one tomogram with everything: equalized, region, scores, picks."""
    output = root / "results"
    folder = output / name
    folder.mkdir(parents=True)
    tomogram = write_volume(root / "tomogram.zarr", volume())
    write_volume(folder / "equalized.zarr", volume() * 2)
    mask = np.zeros(SHAPE, "uint8")
    mask[:, :, 10:40] = 1
    region = write_volume(folder / "region_cytosol.zarr", mask)
    write_picks(folder / "picks_ribosome", regions={"cytosol": region})
    frequency = tuple((np.arange(1, 20) / (48 * SPACING)).tolist())
    spectrum = Spectrum(tuple((1 / np.arange(1, 20)).tolist()), frequency)
    target = write_spectrum(root / "target.tsv", spectrum)
    made = outputs or ["equalized.zarr", "region_cytosol.zarr", "picks_ribosome"]
    write_plan(
        output,
        {name: made},
        [
            *({"tomogram": name, "output": one} for one in made),
            {"tomogram": name, "state": "done", "picks": {"picks_ribosome": 3}, "seconds": 12.3},
        ],
        config={"equalize": {"target": str(target)}, "keep_scores": True} | dict(config),
        inputs={name: str(tomogram)},
    )
    return output


def write_dataset(root, names):
    """Write a run of several tomograms: the first done, the second failed, others not begun."""
    output = root / "results"
    tomogram = write_volume(root / "tomogram.zarr", volume())
    done, failed, *others = names
    write_picks(output / done / "picks_ribosome", regions={})
    (output / failed).mkdir(parents=True)
    events = [
        {"tomogram": done, "output": "picks_ribosome"},
        {"tomogram": done, "state": "done", "picks": {"picks_ribosome": 3}, "seconds": 4.5},
        {"tomogram": failed, "state": "failed", "reason": "the file is <cut off> & short",
         "seconds": 0.2},
    ]  # fmt: skip
    write_plan(
        output, {name: ["picks_ribosome"] for name in names}, events,
        config={"equalize": None, "keep_scores": False},
        inputs={done: str(tomogram), failed: str(root / "gone.mrc")}
        | {name: str(root / "gone.mrc") for name in others},
    )  # fmt: skip
    return output
