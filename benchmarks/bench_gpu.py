"""Which rates one GPU reaches: kernels alone, the path from Zarr to picks, and a rival beside it.

``python -m benchmarks.bench_gpu --out FILE.json`` (``make bench-gpu``) takes some minutes. What it
has found is written after every part, so a run that is cut short leaves figures; a part that fails
leaves its error. With ``--size small`` it runs on the CPU in seconds, which is its own test.

Times are of the second call, with the GPU idle before and after. The floor of the network is the
time to write and read every feature once at the bandwidth of a copy, measured here.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import traceback
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepict_dask.backend import (
    BusBytes,
    Device,
    bus_bytes,
    count_gpus,
    device_budget,
    empty_pools,
    free_device_bytes,
    label_components,
    resolve_device,
    to_device,
    to_host,
)
from deepict_dask.config import PickSettings, SegmentSettings
from deepict_dask.core.geometry import Box, Grid, as_vec
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import ClusterSettings, Workers, connect
from deepict_dask.engine.gpu_workers import visible_gpus
from deepict_dask.equalization import EqualizeOp, radial_spectrum
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.picking.predicted import PickSection, pick_predicted
from deepict_dask.jobs.picking.score_range import score_range
from deepict_dask.jobs.session import Session
from deepict_dask.labelling import SelectSettings
from deepict_dask.labelling.measure import measure_components
from deepict_dask.labelling.select import select_voxels
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.inference import DTYPES, InferenceUNet3D
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.particles.mean_pool_nms import MeanPoolReduction, MeanPoolSettings
from deepict_dask.segmentation.windows import normalise, predict_window

from .gpu_busy import GpuBusy
from .measure import installed, rate, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepict_dask.core.geometry import Vec
    from deepict_dask.models.inference import Precision

GIB = 1 << 30
SETTINGS = UNet3DSettings(depth=2, initial_features=4, n_classes=1)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


class Case:
    """Sizes, and the place where arrays are."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.device = Device("cpu") if small else resolve_device("cuda")
        self.tomogram: Vec = (32, 48, 48) if small else (464, 928, 928)
        self.window: Vec = (16, 32, 32) if small else (232, 464, 464)

    def noise(self, shape: Vec, seed: int = 0) -> Any:
        """Return normal noise on the device, whose blobs a threshold cuts."""
        values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return to_device(values, self.device)

    def network(self) -> UNet3D:
        """Return the yardstick's network on the device."""
        return yardstick().to(self.device.name)

    def warm(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of a second call, and its result."""
        work()
        self.settle()
        return timed(self.settled, work)

    def settled(self, work: Callable[[], Any]) -> Any:
        """Return what a call returns, once the GPU is idle."""
        result = work()
        self.settle()
        return result

    def settle(self) -> None:
        """Wait until the GPU is idle."""
        if self.device.is_gpu:
            torch.cuda.synchronize()


def yardstick() -> UNet3D:
    """Return a network whose scores are above 0.5 for one voxel of noise in twenty."""
    torch.manual_seed(0)
    network = UNet3D(SETTINGS).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 32, 32, 32))
        scale = 1 / logits.std()
        network.out_conv.weight *= scale
        bias = network.out_conv.bias
        assert bias is not None
        bias.copy_(bias * scale - torch.quantile(logits * scale, 0.95))
    return network


def machine(case: Case) -> dict[str, Any]:
    """Name the device, the software and the bandwidth of a copy on the device."""
    n = 1 << (20 if case.small else 31)
    source = torch.zeros(n, dtype=torch.uint8, device=case.device.name)
    target = torch.empty_like(source)
    seconds, _ = case.warm(lambda: target.copy_(source))
    found: dict[str, Any] = {
        "device": case.device.description or "CPU",
        "torch": torch.__version__,
        "copy, GB/s read and written": round(2 * n / seconds / 1e9, 1),
    }
    if case.device.is_gpu:
        import cupy

        found |= {
            "cupy": cupy.__version__,
            "labels by": "cuCIM" if installed("cucim") else "CuPy",
            "free GiB": round(free_device_bytes() / GIB, 1),
            "planned GiB": round(device_budget(free_device_bytes()) / GIB, 1),
        }
        host = torch.zeros(n, dtype=torch.uint8)
        pinned = host.pin_memory()
        for name, memory in (("pageable", host), ("pinned", pinned)):
            seconds, _ = case.warm(partial(target.copy_, memory))
            found[f"to the GPU from {name} memory, GB/s"] = round(n / seconds / 1e9, 1)
    return found


def agreement(case: Case) -> dict[str, Any]:
    """Compare scores of the device with those of the CPU, and of half precision with exact ones."""
    shape = as_vec([min(64, n) for n in case.window])
    window = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    exact = predict_window(yardstick(), window)
    found = {}
    for precision in PRECISIONS:
        network = InferenceUNet3D(case.network(), precision)
        scores = to_host(predict_window(network, to_device(window, case.device)))
        changed = np.count_nonzero((scores > 0.5) != (exact > 0.5))
        found[f"{precision}: largest difference"] = float(np.abs(scores - exact).max())
        found[f"{precision}: voxels over another side, in 10,000"] = 1e4 * changed / exact.size
    return found


def floor_bytes(shape: Vec, bytes_each: int) -> int:
    """Return the bytes of all features of the network, written once and read once.

    Two convolutions on each level on the way down and up, what is upsampled, and skips read again.
    """
    total = 0
    for level in range(SETTINGS.depth + 1):
        plane = (SETTINGS.initial_features << level) * math.prod(shape) >> (3 * level)
        total += (2 if level == SETTINGS.depth else 6) * plane
    return 2 * bytes_each * total


def networks(case: Case) -> dict[str, Any]:
    """Time one window: ours, as windows are computed, and PyTorch's own layers on one tensor."""
    window = case.noise(case.window)
    n = math.prod(case.window)
    found: dict[str, Any] = {"window": case.window}
    copy = machine(case)["copy, GB/s read and written"] * 1e9
    for precision in PRECISIONS:
        network = case.network()
        ours = InferenceUNet3D(network, precision)
        seconds, _ = case.warm(partial(predict_window, ours, window))
        resident, _ = case.warm(_resident(case, network, precision))
        floor = floor_bytes(case.window, DTYPES[precision].itemsize) / copy
        found |= {
            f"{precision}: million voxels per second": rate(n, seconds),
            f"{precision}: PyTorch on one tensor, million voxels per second": rate(n, resident),
            f"{precision}: part of PyTorch's rate": round(resident / seconds, 2),
            f"{precision}: times the floor of the memory's bandwidth": round(seconds / floor, 1),
        }
    return found


def _resident(case: Case, network: UNet3D, precision: Precision) -> Callable[[], torch.Tensor]:
    """Return PyTorch's own inference of one tensor: autocast, channels innermost."""
    layout = torch.channels_last_3d
    inner = network.to(memory_format=layout)  # type: ignore[call-overload]
    tensor = torch.randn(1, 1, *case.window, device=case.device.name).to(memory_format=layout)
    half = precision != "float32"

    def work() -> torch.Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(case.device.name, dtype=DTYPES[precision], enabled=half),
            # float32 as ours is, not TF32
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            scores: torch.Tensor = inner(tensor).sigmoid()
            return scores

    return work


def rival(case: Case) -> dict[str, Any]:
    """Time MONAI's sliding windows over a tomogram of the same weights and precision."""
    if not installed("monai"):
        return {"MONAI": "not installed"}
    from monai.inferers.utils import sliding_window_inference

    shape = as_vec([min(2 * n, m) for n, m in zip(case.window, case.tomogram, strict=True)])
    roi = (32, 32, 32) if case.small else (160, 160, 160)
    half: Precision = "float16"
    network, tensor = case.network(), torch.randn(1, 1, *shape, device=case.device.name)
    ours = InferenceUNet3D(network, half)
    window = case.noise(shape)
    seconds, _ = case.warm(lambda: predict_window(ours, window))
    found: dict[str, Any] = {"shape": shape, "ours, seconds": round(seconds, 3)}
    for overlap in (0.25, 0.5):

        def slide(overlap: float = overlap) -> Any:
            with torch.inference_mode(), torch.autocast(case.device.name, dtype=DTYPES[half]):
                return sliding_window_inference(tensor, roi, 4, network, overlap=overlap)

        theirs, _ = case.warm(slide)
        found[f"MONAI, overlap {overlap}, seconds"] = round(theirs, 3)
        found[f"times faster than overlap {overlap}"] = round(theirs / seconds, 2)
    return found


def labels(case: Case) -> dict[str, Any]:
    """Time labels and tables of a whole tomogram's segmentation."""
    shape = case.tomogram
    score = case.noise(shape)
    chosen = score > 1.3
    found: dict[str, Any] = {"million voxels": round(math.prod(shape) / 1e6, 1)}
    for connectivity in (6, 26):
        seconds, (labelled, n) = case.warm(partial(label_components, chosen, connectivity))
        found[f"{connectivity} neighbours: labels, seconds"] = round(seconds, 3)
        found[f"{connectivity} neighbours: clusters"] = n
    measure = partial(measure_components, labelled, n, score, box=Box.whole(shape), shape=shape)
    seconds, _ = case.warm(measure)
    return found | {"tables, seconds": round(seconds, 3)}


def other_kernels(case: Case) -> dict[str, Any]:
    """Time normalising, equalization and mean-pooling suppression, against the host's."""
    volume = to_host(case.noise(case.tomogram))
    on_device = to_device(volume, case.device)
    seconds, _ = case.warm(lambda: normalise(on_device, 0.1, 1.1))
    found: dict[str, Any] = {"normalise, seconds": round(seconds, 3)}
    target = radial_spectrum(case.noise((32, 32, 32), seed=1), 10.0)
    op = EqualizeOp(target, 10.0)
    seconds, _ = case.warm(lambda: op.transform(to_device(volume.copy(), case.device)))
    found["equalize with the copy to the GPU, seconds"] = round(seconds, 3)
    seconds, _ = case.warm(lambda: op.transform(on_device))
    found["equalize, seconds"] = round(seconds, 3)
    part = volume[tuple(slice(n) for n in case.window)]
    reduction = MeanPoolReduction(MeanPoolSettings.of_diameters([15]), case.device.name)
    (block,) = Grid(case.window, case.window)
    seconds, _ = case.warm(lambda: reduction.measure(block, part))
    found[f"mean-pool nms of {case.window}, seconds"] = round(seconds, 3)
    return found


def stages(case: Case) -> dict[str, Any]:
    """Time what one window goes through, from the host's memory to rows: float16 on a GPU."""
    volume = to_host(case.noise(case.tomogram))
    n, box = math.prod(volume.shape), Box.whole(case.tomogram)
    network = InferenceUNet3D(case.network(), "float16" if case.device.is_gpu else "float32")
    (block,) = Grid(case.tomogram, case.tomogram)
    select = SelectSettings(threshold=0.5)
    measure = partial(measure_components, box=box, shape=box.shape)
    found: dict[str, Any] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        seconds, result = timed(case.settled, work)
        found[f"{name}, seconds"] = round(seconds, 3)
        return result

    for _ in range(2):  # the second is warm
        before = bus_bytes()
        there = step("to the GPU", partial(to_device, volume, case.device))
        normal = step("normalise", partial(normalise, there, 0.0, 1.0))
        del there
        scores = step("network", partial(predict_window, network, normal))[0]
        del normal
        chosen = step("choose", partial(select_voxels, scores, None, box, box.shape, select))
        step("chosen voxels to the host", partial(to_host, chosen))
        labelled, count = step("label", partial(label_components, chosen, 26))
        step("tables", partial(measure, labelled, count, scores))
        step("range of scores", partial(score_range, block, scores))
        del scores, chosen, labelled
    found["on the GPU and over the bus, seconds"] = round(sum(found.values()), 2)
    return found | over_the_bus(bus_bytes() - before, n)


def over_the_bus(moved: BusBytes, n_voxels: int) -> dict[str, float]:
    """Tabulate what was copied beside the least possible, which is each voxel to the GPU once."""
    return {
        "bytes to the GPU for a voxel (least: 4)": round(moved.to_device / n_voxels, 3),
        "bytes to the host for a voxel (least: 0)": round(moved.to_host / n_voxels, 3),
    }


def from_zarr_to_picks(case: Case) -> dict[str, Any]:
    """Run the whole path on workers twice: the second is warm."""
    found: dict[str, Any] = {"tomogram": case.tomogram}
    gpus = tuple(visible_gpus(count_gpus())) if case.device.is_gpu else ()
    cluster = ClusterSettings("local", gpus=gpus) if gpus else ClusterSettings("threads", 1, "2GiB")
    with tempfile.TemporaryDirectory() as name, connect(cluster) as workers:
        folder = Path(name)
        model, source = folder / "model.safetensors", folder / "tomogram.zarr"
        save_model(model, yardstick(), class_names=("a",), voxel_spacing_angstrom=10.0, card={})
        writer = create_ome_zarr(source, VolumeHeader(case.tomogram, "float32", 10.0))
        writer.write(Box.whole(case.tomogram), to_host(case.noise(case.tomogram)))
        session = Session(workers, overwrite=True, device=case.device.name)
        for precision in ("float32", "float16") if case.device.is_gpu else ("float32",):
            section = PickSection(
                SegmentSettings(model=str(model), precision=precision),
                PickSettings(threshold=0.5, min_size=20),
                {},
            )
            for turn in ("first", "warm"):
                before = _moved_by(workers)
                with GpuBusy(gpus[0] if gpus else "0") as busy:
                    seconds, report = timed(
                        pick_predicted, session, source, {folder / "picks": section},
                        tomogram_name="noise",
                    )  # fmt: skip
                found[f"{precision}: {turn}, seconds"] = round(seconds, 2)
                found[f"{precision}: {turn}, part of the time that the GPU is busy"] = busy.part
            moved = over_the_bus(_moved_by(workers) - before, math.prod(case.tomogram))
            found |= {f"{precision}: warm, {what}": figure for what, figure in moved.items()}
            found[f"{precision}: picks"] = next(iter(report.values())).n_picks
        found["planned GiB on the GPU"] = round((session.device_bytes() or 0) / GIB, 1)
    return found


def _moved_by(workers: Workers) -> BusBytes:
    """Return what all processes of the workers have copied since they began."""
    return sum(workers.client.run(bus_bytes).values(), BusBytes())


PARTS = (
    machine, agreement, networks, labels, other_kernels, stages, from_zarr_to_picks, rival
)  # fmt: skip


def run(case: Case, out: Path | None = None) -> dict[str, Any]:
    """Do all parts; write after each."""
    results: dict[str, Any] = {}
    for part in PARTS:
        start = time.perf_counter()
        try:
            found = part(case)
        except Exception:
            found = {"error": traceback.format_exc(limit=-6)}
        if case.device.is_gpu:
            found["peak GiB of PyTorch"] = round(torch.cuda.max_memory_allocated() / GIB, 1)
            torch.cuda.reset_peak_memory_stats()
            # CuPy's pool keeps what it has once held: the next part, and its workers, start without
            pool = import_module("cupy").get_default_memory_pool()
            found["most GiB of CuPy"] = round(pool.total_bytes() / GIB, 1)
            empty_pools()
        results[part.__name__] = found | {"took": round(time.perf_counter() - start, 1)}
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main(arguments: list[str] | None = None) -> int:
    """Read the options; return 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args(arguments)
    results = run(Case(small=options.size == "small"), options.out)
    print(json.dumps(results, indent=1))
    return int(any("error" in found for found in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
