"""A DeePiCt 2D project: its config.yaml and its table of tomograms, understood and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import EqualizeSettings, SegmentSettings, SliceTiling
from ..core.errors import DeepictError
from .findings import Findings
from .keys import read_values
from .keys2d import SCHEMA_2D
from .table import ProjectTable, base_folder, check_name, read_project_table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Project2D", "Tomogram2D", "read_project_2d"]

_FILTER = "preprocessing.filtering"


@dataclass(frozen=True)
class Tomogram2D:
    """One row of the table of ``data.prediction_data``."""

    name: str
    """Prefix of its outputs: the ``id``, or the file's name without its ending."""
    path: Path


@dataclass(frozen=True)
class Project2D:
    """What a 2D config asks for."""

    path: Path
    base: Path
    values: dict[str, Any]
    """Every key that matters, by its dotted name."""
    tomograms: tuple[Tomogram2D, ...]
    findings: Findings

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return self.base / self["data.output_dir"]

    @property
    def work(self) -> Path:
        """Folder of the intermediate stores."""
        return self.output / ".deepict_dask"

    @property
    def model(self) -> Path:
        """The Keras model."""
        return self.base / self["prediction.model"]

    @property
    def filtering(self) -> bool:
        """Whether tomograms are equalized first."""
        return bool(self[f"{_FILTER}.active"])

    @property
    def predict(self) -> bool:
        """Whether score maps are asked for."""
        return bool(self["prediction.active"])

    @property
    def polish(self) -> bool:
        """Whether smoothed masks are asked for."""
        return bool(self["postprocessing.active"])

    @property
    def equalize_settings(self) -> EqualizeSettings:
        """What `equalize_volume` is asked for."""
        return EqualizeSettings(
            target=self.base / self[f"{_FILTER}.target_spectrum"],
            cutoff=self[f"{_FILTER}.lowpass_cutoff"],
            smoothing=self[f"{_FILTER}.smoothen_cutoff"],
            compat="deepict",
        )

    @property
    def segment_settings(self) -> SegmentSettings:
        """What `segment_volume` is asked for."""
        tiling = SliceTiling(
            tile=self["prediction.patch_size"],
            tiles=self["prediction.patch_dim"],
            crop=self["prediction.crop"],
            z_cutoff=self["prediction.z_cutoff"],
            normalize=self["prediction.normalize"],
            compensate_crop=self["prediction.compensate_crop"],
        )
        return SegmentSettings(model=str(self.model), compat="deepict", tiling=tiling)


def read_project_2d(path: Path, values: dict[str, Any], *, for_run: bool = True) -> Project2D:
    """Understand and check a 2D config.

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
    read = read_values(values, SCHEMA_2D, findings)
    _decide_actives(read, values, findings)
    _compare(read, findings)
    findings.stop_on_errors()
    base = base_folder(path, read["data.prediction_data"])
    table = read_project_table(base / read["data.prediction_data"], base, ["data"])
    project = Project2D(path, base, read, _tomograms(table, findings), findings)
    _check_files(project)
    findings.stop_on_errors()
    return project


def _decide_actives(read: dict[str, Any], values: dict[str, Any], findings: Findings) -> None:
    """Take a section without ``active`` as active, and a missing one as not."""
    for section in ("prediction", "postprocessing"):
        if read[f"{section}.active"] is None:
            read[f"{section}.active"] = bool(values.get(section))
            if values.get(section):
                findings.note(f"{section}.active is not given: the section is taken as active")


def _compare(read: dict[str, Any], findings: Findings) -> None:
    """Name what contradicts itself within the config, and what is asked for but not done."""
    training = [f"training.{name}.active" for name in ("evaluation", "production")]
    wanted = [name for name in training if read[name]]
    doing = [read[f"{s}.active"] for s in (_FILTER, "prediction", "postprocessing")]
    if wanted and any(doing):
        findings.warn(
            f"{' and '.join(wanted)}: training is done by `deepict-dask train CONFIG`; here the "
            "rest of the config is done"
        )
    elif not any(doing):
        asked = f"; {' and '.join(wanted)}: see `deepict-dask train CONFIG`" if wanted else ""
        findings.absent(f"nothing that can be done is active: set prediction.active to True{asked}")
    if read["preprocessing.remapping.active"]:
        findings.warn("preprocessing.remapping.active: labels are for training only; ignored")
    for active, key in (
        ("prediction.active", "prediction.model"),
        (f"{_FILTER}.active", f"{_FILTER}.target_spectrum"),
    ):
        if read[active] and read[key] is None:
            findings.error(f"{key}: is required, found nothing")
    _compare_tiles(read, findings)


def _compare_tiles(read: dict[str, Any], findings: Findings) -> None:
    """Name numbers that leave nothing of a tile, and a blur that goes backwards."""
    crop, tile = read["prediction.crop"], read["prediction.patch_size"]
    if crop is not None and tile is not None and 2 * crop >= min(tile):
        findings.error(
            f"prediction.crop: expected less than half of prediction.patch_size {list(tile)}, "
            f"found {crop}"
        )
    for key in ("postprocessing.sigma", f"{_FILTER}.lowpass_cutoff", f"{_FILTER}.smoothen_cutoff"):
        if read[key] is not None and read[key] < 0:
            findings.error(f"{key}: expected 0 or more, found {read[key]:g}")


def _tomograms(table: ProjectTable, findings: Findings) -> tuple[Tomogram2D, ...]:
    """Return the tomograms of the table, by the prefixes of their outputs."""
    found: dict[str, Tomogram2D] = {}
    for number, row in enumerate(table.rows, start=1):
        path = table.file(row, "data", str(number), findings)
        if path is None:
            findings.error(
                f"{table.path}: row {number}, column data: expected a file, found an empty cell"
            )
            continue
        name = table.cell(row, "id") or path.stem
        check_name(name, f"{table.path}: row {number}, column id", findings)
        if name in found:
            findings.error(
                f"{table.path}: row {number}: expected another id, found {name} once more: "
                "outputs would have one name"
            )
        found[name] = Tomogram2D(name, path)
    return tuple(found.values())


def _check_files(project: Project2D) -> None:
    """Name a spectrum or a model that is not there, and a model that is not 2D."""
    from ..models.checkpoint import model_info

    findings = project.findings
    if project.filtering and not project.equalize_settings.target.is_file():
        findings.absent(
            f"{_FILTER}.target_spectrum: expected a file, found none: "
            f"{project.equalize_settings.target}"
        )
    if not project.predict:
        return
    try:
        kind = model_info(project.model).kind
    except DeepictError as error:
        findings.absent(f"prediction.model: {error}")
        return
    if kind != "unet2d":
        findings.error(
            f"prediction.model: {project.model}: expected a 2D network, found one of kind {kind}; "
            "3D models belong into a 3D config.yaml (model_path)"
        )
