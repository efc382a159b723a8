"""A DeePiCt 3D project: its config.yaml and metadata table, understood and checked.

1. Read the keys (`keys3d.SCHEMA_3D`); 2. compare them with one another; 3. look every tomogram of
``prediction_list`` up in the table; 4. compare with the checkpoint. All problems come as one
message before any work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PickSettings, SegmentSettings
from ..core.errors import DeepictError
from .compare3d import compare_3d
from .findings import Findings
from .keys import read_values
from .keys3d import SCHEMA_3D
from .table import ProjectTable, base_folder, check_name, read_project_table

__all__ = ["REGION", "Project3D", "Tomogram3D", "read_project_3d"]

REGION = "region_mask"
"""Name of the one region of a DeePiCt project in our settings."""
_POST = "postprocessing_clustering"


@dataclass(frozen=True)
class Tomogram3D:
    """One tomogram of ``prediction_list`` and its files."""

    name: str
    path: Path
    region: Path | None = None
    """Region mask; None where the cell is empty."""
    true_motl: Path | None = None
    true_mask: Path | None = None


@dataclass(frozen=True)
class Project3D:
    """What a 3D config asks for."""

    path: Path
    base: Path
    values: dict[str, Any]
    """Every key that matters, by its dotted name."""
    tomograms: tuple[Tomogram3D, ...]
    findings: Findings
    class_in_model: str | None = None
    """Name of the class in the model file; None where the model has one class."""

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return self.base / self["output_dir"]

    @property
    def work(self) -> Path:
        """Folder of the intermediate stores."""
        return self.base / self["work_dir"] / "deepict_dask"

    @property
    def model(self) -> Path:
        """The checkpoint."""
        return self.base / self["model_path"]

    @property
    def model_name(self) -> str:
        """Name of the model in folders: the file's without its last four characters.

        (Of our own ``.safetensors``, without the whole ending.)
        """
        return self.model.name[:-4] if len(self.model.suffix) == 4 else self.model.stem

    @property
    def class_name(self) -> str:
        """The semantic class that is predicted."""
        return str(self["prediction.semantic_class"])

    @property
    def channel(self) -> int:
        """Where the class is in the model's output, as DeePiCt takes it."""
        return int(self["training.semantic_classes"].index(self.class_name))

    def place(self, tomogram: Tomogram3D) -> Path:
        """Return the place of a tomogram's results below output_dir and work_dir."""
        return Path("predictions", self.model_name, tomogram.name, self.class_name)

    @property
    def predict(self) -> bool:
        """Whether probability maps are asked for."""
        return bool(self["prediction.active"])

    @property
    def postprocess(self) -> bool:
        """Whether masks and particle lists are asked for."""
        return bool(self[f"{_POST}.active"])

    @property
    def calculate_motl(self) -> bool:
        """Whether post-processing writes a particle list."""
        return bool(self[f"{_POST}.calculate_motl"])

    @property
    def evaluate_picks(self) -> bool:
        """Whether picks are compared with the truth."""
        return bool(self["evaluation.particle_picking.active"])

    @property
    def evaluate_mask(self) -> bool:
        """Whether segmentations are compared with the truth."""
        return bool(self["evaluation.segmentation_evaluation.active"])

    @property
    def segment_settings(self) -> SegmentSettings:
        """What `segment_volume` is asked for."""
        return SegmentSettings(
            model=str(self.model),
            classes=None if self.class_in_model is None else (self.class_in_model,),
            compat="deepict",
            box_size=self["training.box_size"],
            overlap=self["training.overlap"],
        )

    def pick_settings(self, *, with_region: bool) -> PickSettings:
        """Return what `pick_particles` is asked for."""
        return PickSettings(
            threshold=self[f"{_POST}.threshold"],
            min_size=self[f"{_POST}.min_cluster_size"],
            max_size=self[f"{_POST}.max_cluster_size"],
            connectivity=self[f"{_POST}.clustering_connectivity"],
            border=self[f"{_POST}.ignore_border_thickness"],
            region=REGION if with_region else None,
            contact_mode=self[f"{_POST}.contact_mode"],
            contact_distance=self[f"{_POST}.contact_distance"],
            distances=(),
            compat="deepict",
        )


def read_project_3d(path: Path, values: dict[str, Any], *, for_run: bool = True) -> Project3D:
    """Understand and check a 3D config.

    Parameters
    ----------
    path
        The config, for messages and relative paths.
    values
        Its parsed YAML.
    for_run
        Whether files and models must be there, and something active.

    Raises
    ------
    ConfigError
        Something is missing, unknown, or contradicts something else; all problems are named.
    """
    findings = Findings(str(path), for_run=for_run)
    read = read_values(values, SCHEMA_3D, findings)
    compare_3d(read, findings)
    findings.stop_on_errors()
    base = base_folder(path, read["dataset_table"])
    project = Project3D(path, base, read, (), findings)
    table = read_project_table(base / read["dataset_table"], base, ["tomo_name"])
    tomograms = _tomograms(project, table)
    findings.stop_on_errors()
    class_in_model = _compare_with_model(project)
    findings.stop_on_errors()
    return Project3D(path, base, read, tomograms, findings, class_in_model)


def _tomograms(project: Project3D, table: ProjectTable) -> tuple[Tomogram3D, ...]:
    """Look the tomograms up; everything that is missing is named."""
    wanted = project["tomos_sets.prediction_list"]
    if not wanted:
        project.findings.error("tomos_sets.prediction_list: expected a tomogram, found none")
    columns = {
        what: column
        for what, (column, why) in _columns(project).items()
        if table.has(column, why, project.findings)
    }
    found = (_tomogram(project, table, columns, name) for name in wanted)
    return tuple(tomogram for tomogram in found if tomogram is not None)


def _columns(project: Project3D) -> dict[str, tuple[str, str]]:
    """Return the columns that are needed, by the field of `Tomogram3D`, and why."""
    columns = {"path": (project["training.processing_tomo"], "training.processing_tomo")}
    if project[f"{_POST}.region_mask"] is not None:
        columns["region"] = (project[f"{_POST}.region_mask"], f"{_POST}.region_mask")
    if project.evaluate_picks:
        columns["true_motl"] = (f"{project.class_name}_motl", "evaluation.particle_picking")
    if project.evaluate_mask:
        columns["true_mask"] = (f"{project.class_name}_mask", "evaluation.segmentation_evaluation")
    return columns


def _tomogram(
    project: Project3D, table: ProjectTable, columns: dict[str, str], name: str
) -> Tomogram3D | None:
    """Look one tomogram up."""
    findings = project.findings
    check_name(name, "tomos_sets.prediction_list", findings)
    rows = [row for row in table.rows if (row.get("tomo_name") or "").strip() == name]
    if len(rows) != 1:
        hint = ""
        if name.isdigit() and not rows:
            hint = " (YAML reads an unquoted 001 as the number 1: write '001')"
        findings.error(
            f"{table.path}: expected one row with the tomo_name {name} of "
            f"tomos_sets.prediction_list, found {len(rows) or 'none'}{hint}"
        )
        return None
    files = {w: table.file(rows[0], column, name, findings) for w, column in columns.items()}
    for what, column in columns.items():
        if what != "region" and files[what] is None:
            findings.error(
                f"{table.path}: row {name}, column {column}: expected a file, found an empty cell"
            )
    return Tomogram3D(name, files.pop("path", None) or Path(), **files)


def _compare_with_model(project: Project3D) -> str | None:
    """Compare the config with the checkpoint, which wins; return the class's name in the model.

    DeePiCt takes the channel from the position in ``training.semantic_classes``, whatever the
    checkpoint calls it.
    """
    from ..models.checkpoint import model_info

    findings = project.findings
    needed = project.predict or not findings.for_run
    try:
        found = model_info(project.model)
    except DeepictError as error:
        if needed:
            findings.absent(f"model_path: {error}")
        return None
    names, channel = found.class_names, project.channel
    if needed:
        _compare_with(project, found, channel)
    return names[channel] if len(names) > 1 and channel < len(names) else None


def _compare_with(project: Project3D, found: Any, channel: int) -> None:
    """Name what differs between the config and a checkpoint."""
    findings = project.findings
    if found.kind != "unet3d":
        findings.error(
            f"model_path: {project.model}: expected DeePiCt's 3D network, found one of kind "
            f"{found.kind}; a 2D network belongs into a 2D config.yaml (prediction.model)"
        )
        return
    _compare_architecture(project, found)
    classes, names = project["training.semantic_classes"], found.class_names
    if len(classes) != len(names):
        (findings.warn if channel < len(names) else findings.error)(
            f"training.semantic_classes: the model has {len(names)} classes "
            f"({', '.join(names)}), found {len(classes)} ({', '.join(classes)})"
        )
    elif tuple(classes) != tuple(names):
        findings.warn(
            f"training.semantic_classes: the model calls its classes {', '.join(names)}, the "
            f"config {', '.join(classes)}: {project.class_name} is channel {channel}, as DeePiCt "
            "takes it"
        )


def _compare_architecture(project: Project3D, found: Any) -> None:
    """Name hyperparameters that differ from the checkpoint's, and boxes that cannot be halved."""
    section = "training.unet_hyperparameters"
    for key in ("depth", "initial_features", "batch_norm"):
        wanted, there = project[f"{section}.{key}"], getattr(found.settings, key)
        if wanted is not None and wanted != there:
            project.findings.warn(
                f"{section}.{key}: the model has {there}, the config says {wanted}: "
                "the model's is used, as DeePiCt does"
            )
    for key in ("box_size", "overlap"):
        wanted, there = project[f"training.{key}"], found.card.get(key)
        if there is not None and wanted != there:
            project.findings.warn(
                f"training.{key}: the model was trained with {there}, the config says {wanted}: "
                "the config's is used, as DeePiCt does"
            )
    if project["training.box_size"] % found.align:
        project.findings.error(
            f"training.box_size: expected a multiple of {found.align} for this model, "
            f"found {project['training.box_size']}"
        )
