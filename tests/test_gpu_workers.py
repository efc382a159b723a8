"""A worker for each GPU and some beside them; the benchmark that a machine with a GPU runs."""

import json
import os
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks import bench_gpu
from benchmarks.gpu_busy import GpuBusy
from deepict_dask.cli import app
from deepict_dask.core.errors import DeviceError
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.engine.cluster import Workers
from deepict_dask.engine.gpu_workers import (
    plan_gpu_workers,
    task_bytes,
    visible_gpus,
    worker_specs,
)
from deepict_dask.equalization import EqualizeOp
from deepict_dask.jobs.session import Session
from deepict_dask.models.gpu_parts import gpu_parts
from deepict_dask.segmentation.windows import SegmentOp

GIB = 1 << 30


def test_every_gpu_has_one_worker_and_no_two_the_same():
    plan = plan_gpu_workers(["4", "GPU-5a"], n_cores=8, free_bytes=64 * GIB)
    seen = "CUDA_VISIBLE_DEVICES"
    of_gpus = {n: {seen: env[seen]} for n, (_, env, kind) in plan.items() if "GPU" in kind}
    assert of_gpus == {
        "gpu-0": {"CUDA_VISIBLE_DEVICES": "4"}, "gpu-1": {"CUDA_VISIBLE_DEVICES": "GPU-5a"},
    }  # fmt: skip
    others = [env for _, env, kind in plan.values() if kind == {"CPU": 1}]
    assert others == [{"CUDA_VISIBLE_DEVICES": ""}] * 6
    assert sum(n_bytes for n_bytes, _, _ in plan.values()) <= 64 * GIB


def test_a_worker_with_a_gpu_decodes_as_many_chunks_at_once_as_its_cores_allow():
    plan = plan_gpu_workers(["0", "1"], n_cores=6, free_bytes=64 * GIB)
    assert plan["gpu-0"][1]["ZARR_ASYNC__CONCURRENCY"] == "3"
    assert "ZARR_ASYNC__CONCURRENCY" not in plan["cpu-0"][1]


@pytest.mark.parametrize(
    ("n_cores", "gib", "n_tasks"),
    [(16, 128, 3), (16, 30, 2), (16, 12, 1), (2, 128, 2), (1, 128, 1)],
)
def test_a_worker_with_a_gpu_has_as_many_tasks_as_its_memory_and_cores_allow(n_cores, gib, n_tasks):
    plan = plan_gpu_workers(["0"], n_cores, gib * GIB)
    assert plan["gpu-0"][2] == {"GPU": n_tasks}
    assert task_bytes(plan, "GPU") * n_tasks <= plan["gpu-0"][0]
    assert task_bytes(plan, "CPU") == plan["cpu-0"][0]
    options = {name: spec["options"] for name, spec in worker_specs(plan).items()}
    assert options["gpu-0"]["nthreads"] == n_tasks
    assert {spec["nthreads"] for name, spec in options.items() if name != "gpu-0"} == {1}


def test_the_tasks_of_a_worker_share_its_memory_but_one_that_is_alone_has_all():
    kinds = frozenset({"GPU", "CPU"})
    workers = Workers(None, 3, 2 * GIB, "", kinds=kinds, gpu_bytes=10 * GIB, tasks_per_gpu=3)
    op = SegmentOp("m", 0.0, 1.0, device="cuda")
    assert workers.memory_of(op) == 10 * GIB
    assert workers.memory_of(op, alone=True) == 30 * GIB
    assert workers.placed(op) == {"resources": {"GPU": 1}}
    assert workers.placed(op, alone=True) == {"resources": {"GPU": 3}}
    assert workers.placed(alone=True) == {"resources": {"CPU": 1}}
    assert workers.memory_of(alone=True) == 2 * GIB


def test_there_is_a_worker_without_a_gpu_even_on_one_core():
    plan = plan_gpu_workers(["0"], n_cores=1, free_bytes=12 * GIB)
    assert list(plan) == ["gpu-0", "cpu-0"]


def test_the_user_says_how_many_workers_stand_beside_and_how_large_those_with_a_gpu_are():
    plan = plan_gpu_workers(["0"], 16, 64 * GIB, n_cpu_workers=3, memory_bytes=10 * GIB)
    assert [name for name in plan if name.startswith("cpu")] == ["cpu-0", "cpu-1", "cpu-2"]
    assert plan["gpu-0"][0] == 10 * GIB


def test_more_memory_than_there_is_is_refused_with_both_figures():
    with pytest.raises(DeviceError, match=r"expected 22\.0 GiB.*found 16\.0 GiB free"):
        plan_gpu_workers(["0"], 4, 16 * GIB, memory_bytes=20 * GIB)


@pytest.mark.parametrize(
    ("listed", "n_found", "names"),
    [
        ("", 2, ["0", "1"]),
        ("2", 1, ["2"]),
        (" 3 , 1", 2, ["3", "1"]),
        ("0,1,-1,2", 2, ["0", "1"]),
        ("MIG-7f", 1, ["MIG-7f"]),
        ("", 0, []),
    ],
)
def test_the_gpus_of_a_job_are_those_that_its_batch_system_lists(listed, n_found, names):
    assert visible_gpus(n_found, {"CUDA_VISIBLE_DEVICES": listed}) == names


def environment():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


@pytest.mark.slow
def test_work_for_a_gpu_goes_to_its_worker_and_the_rest_beside():
    settings = ClusterSettings(workers=1, memory="1GiB", gpus=("7",))
    with connect(settings) as workers:
        assert workers.kinds == {"GPU", "CPU"}
        assert workers.gpu_bytes == GIB
        seen = {}
        for name, work in (("gpu", (SegmentOp("m", 0.0, 1.0, device="cuda"),)), ("cpu", ())):
            futures = [
                workers.client.submit(environment, pure=False, **workers.placed(*work))
                for _ in range(3)
            ]
            seen[name] = set(workers.client.gather(futures))
    assert {listed for listed, _ in seen["gpu"]} == {"7"}
    assert {listed for listed, _ in seen["cpu"]} == {""}
    assert [len(found) for found in seen.values()] == [1, 1]


def test_a_window_for_a_gpu_may_take_the_memory_of_its_worker():
    workers = Workers(None, 3, 2 * GIB, "", gpu_bytes=40 * GIB)
    assert workers.memory_of(SegmentOp("m", 0.0, 1.0, device="cuda")) == 40 * GIB
    assert workers.memory_of(SegmentOp("m", 0.0, 1.0)) == 2 * GIB
    target = Spectrum((1.0, 1.0), (0.01, 0.02))
    assert workers.memory_of(EqualizeOp(target, 10.0, device="cuda")) == 40 * GIB
    alike = Workers(None, 3, 2 * GIB, "")
    assert alike.memory_of(SegmentOp("m", 0.0, 1.0, device="cuda")) == 2 * GIB


@pytest.mark.parametrize(("per_gpu", "part"), [(1, 96 * GIB), (2, 48 * GIB)])
def test_workers_that_share_a_gpu_have_as_large_a_part_of_its_memory(per_gpu, part):
    asked = []

    def submit(*_work, pure, **where):
        assert not pure
        asked.append(where)
        return SimpleNamespace(result=lambda: 96 * GIB)

    client = SimpleNamespace(submit=submit)
    workers = Workers(client, 4, GIB, "", kinds=frozenset({"GPU", "CPU"}), per_gpu=per_gpu)
    assert workers.free_device_bytes() == part
    assert workers.free_device_bytes() == part  # the same windows, whatever neighbours hold by now
    assert asked == [{"resources": {"GPU": 1}}]


def test_a_worker_is_asked_for_the_memory_of_its_gpu_only_if_networks_run_there():
    workers = SimpleNamespace(free_device_bytes=lambda: 100 * GIB)
    assert Session(workers).device_bytes() is None
    assert 50 * GIB < Session(workers, device="cuda").device_bytes() < 100 * GIB


def test_doctor_names_every_part_for_a_gpu():
    found = CliRunner().invoke(app, ["doctor"])
    assert found.exit_code == 0
    for part, text in gpu_parts().items():
        assert f"{part:<24} {text}" in found.output


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_does_all_its_parts_on_the_cpu(tmp_path):
    out = tmp_path / "folder" / "gpu.json"
    assert bench_gpu.main(["--size", "small", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert list(results) == [part.__name__ for part in bench_gpu.PARTS]
    assert results["agreement"]["float32: largest difference"] < 1e-6
    assert results["agreement"]["float16: largest difference"] < 5e-3
    assert results["agreement"]["float16: voxels over another side, in 10,000"] <= 1
    assert results["from_zarr_to_picks"]["float32: picks"] > 0


def test_a_part_that_fails_leaves_its_error_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(_case):
        raise MemoryError("no such luck")

    def fine(_case):
        return {"figure": 1}

    monkeypatch.setattr(bench_gpu, "PARTS", (broken, fine))
    assert bench_gpu.main(["--size", "small", "--out", str(tmp_path / "gpu.json")]) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert "no such luck" in results["broken"]["error"]
    assert results["fine"]["figure"] == 1


def test_how_busy_a_gpu_is_is_the_mean_of_what_its_driver_says(tmp_path, monkeypatch):
    ready, asked = tmp_path / "ready", tmp_path / "asked"
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {asked}\n'
        f"printf '50\\n100\\n0\\n[N/A]\\n'\ntouch {ready}\nexec sleep 600\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with GpuBusy("GPU-5a") as busy:
        while not ready.exists():  # pytest's own limit ends it
            time.sleep(0.01)
    assert busy.part == 0.5
    assert "--id=GPU-5a" in asked.read_text().split()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with GpuBusy("0") as busy:
        pass
    assert busy.part is None
