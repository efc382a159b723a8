"""Tell DeePiCt's configs from ours, and run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..config import read_config_file
from ..core.errors import ConfigError
from .project2d import Project2D, read_project_2d
from .project3d import Project3D, read_project_3d
from .run2d import plan_2d, run_2d
from .run3d import plan_3d, run_3d

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..jobs.session import Session
    from ..pipeline import RunReport

__all__ = ["is_deepict_config", "plan_deepict", "read_project", "run_deepict"]

_KEYS_3D = {"dataset_table", "tomos_sets", "postprocessing_clustering", "model_path"}
_KEYS_2D = {"data", "preprocessing", "prediction", "postprocessing"}
_OURS = {"tomograms", "segment", "pick", "regions", "equalize"}


def is_deepict_config(values: dict[str, Any]) -> Literal["3d", "2d"] | None:
    """Say whether parsed YAML is a config of DeePiCt's 3D or 2D part.

    Examples
    --------
    >>> is_deepict_config({"dataset_table": "metadata.csv", "tomos_sets": {}})
    '3d'
    >>> is_deepict_config({"data": {"prediction_data": "all.csv"}, "prediction": {}})
    '2d'
    >>> is_deepict_config({"tomograms": "t.mrc", "output": "out", "segment": []}) is None
    True
    """
    keys = values.keys()
    if keys & _OURS:
        return None
    if keys & _KEYS_3D:
        return "3d"
    return "2d" if keys & _KEYS_2D else None


def read_project(path: Path, *, for_run: bool = True) -> Project3D | Project2D:
    """Understand and check a config of DeePiCt.

    Parameters
    ----------
    path
        The YAML.
    for_run
        Whether files and models must be there, and something active.

    Raises
    ------
    ConfigError
        It is no such config, or something in it is missing, unknown or contradictory.
    """
    values = read_config_file(path)
    kind = is_deepict_config(values)
    if kind is None:
        raise ConfigError(
            f"{path}: expected a config of DeePiCt (3D: dataset_table, tomos_sets, ...; 2D: data, "
            "preprocessing, prediction, ...), found something else"
        )
    read = read_project_3d if kind == "3d" else read_project_2d
    return read(path, values, for_run=for_run)


def run_deepict(
    session: Session,
    path: Path,
    *,
    say: Callable[[str], None] = lambda _text: None,
    resume: bool = True,
) -> RunReport:
    """Do what a config of DeePiCt asks for and leave the files that DeePiCt would leave.

    Parameters
    ----------
    session
        Workers and wishes.
    path
        The config. Relative paths in it count from the current folder, as with DeePiCt, or from
        the config's own where the table lies there.
    say
        Receives notes, and one line per finished output.
    resume
        Keep finished outputs that answer the same request; else all are made again.

    Returns
    -------
    RunReport
        Tomograms that failed are in ``failed``; one that fails does not stop the others.

    Raises
    ------
    ConfigError
        Something in the config or its table is missing, unknown or contradictory, or nothing that
        we do is active.
    """
    project = read_project(path)
    project.findings.tell(say)
    if isinstance(project, Project3D):
        return run_3d(session, project, say=say, resume=resume)
    return run_2d(session, project, say=say, resume=resume)


def plan_deepict(path: Path) -> list[str]:
    """Return what a run would make, line by line, without starting a worker.

    Raises
    ------
    ConfigError
        As `run_deepict`.
    """
    project = read_project(path)
    lines: list[str] = []
    project.findings.tell(lines.append)
    plan = plan_3d(project) if isinstance(project, Project3D) else plan_2d(project)
    return [*lines, *plan]
