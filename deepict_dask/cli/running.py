"""Commands on whole runs and on the installation: run, demo, models, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    WorkersOption,
    open_session,
    say,
)
from .stopping import stopped_cleanly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config import RunConfig
    from ..pipeline import RunReport


def run(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML of the run.")],
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Keep, or remove, what an earlier run made.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every setting and the plan; do nothing.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Overrides the config: local, slurm:PROFILE.yaml, ..."),
    ] = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    progress: ProgressOption = True,
) -> None:
    """Run the whole pipeline over one or many tomograms.

    CONFIG is our YAML, or a config.yaml of DeePiCt (3D or 2D), which is run as DeePiCt would.

    Example: deepict-dask run run.yaml
    """
    from ..config import read_config_file
    from ..deepict_project import is_deepict_config

    values = read_config_file(config_file)
    plan_and_run = _run_project if is_deepict_config(values) else _run_config
    wishes = {"cluster": cluster, "workers": workers, "memory": memory, "progress": progress}
    with stopped_cleanly():
        report = plan_and_run(config_file, wishes, resume=resume, dry_run=dry_run)
    if report is not None and report.failed:
        from ..core.errors import WorkFailedError

        reasons = "; ".join(f"{one.name}: {one.why}" for one in report.failed)
        raise WorkFailedError(
            f"{len(report.failed)} of {len(report.tomograms)} tomograms failed: {reasons}"
        )


def _run_config(
    config_file: Path, wishes: dict[str, Any], *, resume: bool, dry_run: bool
) -> RunReport | None:
    """Plan or do what a config of ours says; wishes of the command line come first."""
    from ..config import dump_config, load_run_config
    from ..pipeline import run_pipeline
    from ..plan import plan_run

    config = load_run_config(config_file)
    config = _with_wishes(config, wishes)
    where = config.cluster
    if dry_run:
        say(dump_config(config))
        say("\n".join(plan_run(config)))
        return None
    with open_session(
        cluster=where.kind, workers=where.workers, memory=where.memory, device=where.device,
        progress=wishes["progress"],
    ) as session:  # fmt: skip
        return run_pipeline(session, config, say=say, restart=not resume)


def _with_wishes(config: RunConfig, wishes: dict[str, Any]) -> RunConfig:
    """Return a config whose cluster is that of the command line, as far as it names one.

    What the config says of workers of one kind is not meant for those of another.
    """
    given = {"kind": wishes["cluster"], "workers": wishes["workers"], "memory": wishes["memory"]}
    update = {name: value for name, value in given.items() if value is not None}
    if update.get("kind", config.cluster.kind) != config.cluster.kind:
        update = {"workers": None, "memory": None} | update
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=update)})


def _run_project(
    config_file: Path, wishes: dict[str, Any], *, resume: bool, dry_run: bool
) -> RunReport | None:
    """Plan or do what a config of DeePiCt says."""
    from ..deepict_project import plan_deepict, run_deepict

    if dry_run:
        say("\n".join(plan_deepict(config_file)))
        return None
    where = {"cluster": wishes["cluster"] or "local", "device": "auto"}
    with open_session(**wishes | where) as session:
        return run_deepict(session, config_file, say=say, resume=resume)


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")] = Path("demo"),
    signal_to_noise: Annotated[
        float | None, typer.Option("--signal-to-noise", help="Variance of signal over noise")
    ] = None,
    ribosomes: Annotated[int | None, typer.Option("--ribosomes", help="How many")] = None,
    fas: Annotated[int | None, typer.Option("--fas", help="How many")] = None,
    distractors: Annotated[
        int | None, typer.Option("--distractors", help="How many of each of the four")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the synthetic cell")] = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Make a synthetic cell, find its particles, and compare with the truth.

    Example: deepict-dask demo my-first-run
    """
    from ..demo import DemoSettings, run_demo

    wishes = {
        "signal_to_noise": signal_to_noise, "n_ribosomes": ribosomes, "n_fas": fas,
        "n_distractors_each": distractors, "seed": seed,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
    settings = DemoSettings(**given)
    with open_session(
        workers=workers, memory=memory, device="auto", overwrite=overwrite, progress=progress
    ) as session:
        run_demo(session, folder, settings, say=say)


def list_models() -> None:
    """List the bundled models.

    Example: deepict-dask models list
    """
    from ..models.checkpoint import model_info
    from ..models.registry import bundled_models

    for name, path in bundled_models().items():
        say(f"{name}: classes {', '.join(model_info(path).class_names)}")


def show_model(
    model: Annotated[str, typer.Argument(help="Model file or bundled model.")],
) -> None:
    """Show what a model file holds: architecture, classes, voxel spacing, halo.

    Example: deepict-dask models show ribosome.pth
    """
    from ..models.checkpoint import model_info
    from ..models.registry import resolve_model

    found = model_info(resolve_model(model))
    for name, value in model_lines(found):
        say(f"{name:<28} {value}")


def export_model(
    model: Annotated[str, typer.Argument(help="Model file or bundled model.")],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help=".pth for DeePiCt; .tsv: the spectrum it was trained with."
        ),
    ],
    overwrite: OverwriteOption = False,
) -> None:
    """Write a 3D model as DeePiCt's checkpoint, or the spectrum of its equalized tomograms.

    Example: deepict-dask models export model.safetensors ribosome.pth
    """
    from ..jobs.export_model import export_model as export

    export(model, target, overwrite=overwrite)
    say(f"wrote {target}")


def model_lines(found: Any) -> Iterator[tuple[str, str]]:
    """Yield what is known of a model, name by name."""
    from ..models.architecture import NETWORKS

    yield "file", str(found.path)
    yield "classes", ", ".join(found.class_names)
    spacing = found.voxel_spacing_angstrom
    yield "voxel spacing", "not stated" if spacing is None else f"{spacing:g} Å"
    yield "network", NETWORKS[found.kind][0]
    for name, value in asdict(found.settings).items():
        yield name.replace("_", " "), str(value)
    yield "parameters", str(found.n_parameters)
    yield "halo", f"{found.halo} voxels" + (" in y and x" if found.kind == "unet2d" else "")
    if "tile" in found.card:
        yield "tile it was made for", " x ".join(map(str, found.card["tile"]))
    for name, limits in found.card.get("recommended", {}).items():
        yield f"recommended for {name}", ", ".join(f"{k} {v}" for k, v in limits.items())
    if "equalization" in found.card:
        said = found.card["equalization"]
        yield "trained on", "equalized tomograms" if said else "tomograms as they are"
    yield "about", str(found.card.get("about", ""))
    yield "sha256", str(found.sha256)


def doctor() -> None:
    """Say what this installation can do, and what is missing for a GPU.

    Example: deepict-dask doctor
    """
    from ..backend import resolve_device
    from ..core.errors import DeviceError
    from ..engine import ClusterSettings
    from ..engine.budget import format_bytes
    from ..engine.cluster import plan_workers
    from ..jobs.picking.outputs import versions
    from ..models.gpu_parts import gpu_parts

    for name, text in versions().items():
        say(f"{name:<24} {text}")
    count, each = plan_workers(ClusterSettings())
    say(f"{'local workers':<24} {count} of {format_bytes(each)}")
    try:
        say(f"{'GPU':<24} {resolve_device('cuda').description}")
    except DeviceError as error:
        say(f"{'GPU':<24} not used, networks run on the CPU ({error})")
    for name, text in gpu_parts().items():
        say(f"{name:<24} {text}")


def register(app: typer.Typer, models_app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (run, demo, doctor):
        app.command()(command)
    models_app.command("list")(list_models)
    models_app.command("show")(show_model)
    models_app.command("export")(export_model)
