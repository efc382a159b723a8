"""What a config of DeePiCt says of training, as a config of ours.

What is done as DeePiCt does: its patches (a grid, kept where labelled), loss, schedule, batch, and
an epoch of as many steps as there are patches. What is done otherwise, and said:

* Validation is a part of each tomogram at its end, where DeePiCt draws among patches that overlap.
* Augmentation is applied; DeePiCt's 3D programs compute it and train without it, and its 2D
  programs leave it out of the final model.
* Tomograms are normalised as at prediction.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import read_config_file, settings_from
from ..config.training import TrainConfig
from ..core.errors import ConfigError
from ..io.csv_text import csv_of_dicts
from ..io.datasets.names import as_file_name
from ..io.replace import replace_file
from .findings import Findings
from .keys import Schema, read_values
from .keys_training import TRAINING_2D, TRAINING_3D
from .project import is_deepict_config
from .table import ProjectTable, base_folder, read_project_table

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DeepictTraining", "read_deepict_training"]

_NET, _AUG = "training.unet_hyperparameters", "training.data_augmentation"
_EVALUATION = "training.evaluation"
_LOSSES = {"Dice": "dice", "GeneralizedDice": "generalized_dice"}
_NOISE_PART = 0.3
"""DeePiCt multiplies the noise it draws by up to this."""


@dataclass(frozen=True)
class DeepictTraining:
    """A training of ours that stands for one of DeePiCt's."""

    config: TrainConfig
    checkpoint: Path | None = None
    """Where DeePiCt would leave its ``.pth``; None for a 2D network."""
    force: bool = False
    """Whether a checkpoint that is there is trained again."""

    @property
    def is_there(self) -> bool:
        """Whether DeePiCt would train nothing, as its checkpoint is there."""
        return self.checkpoint is not None and self.checkpoint.exists() and not self.force


def read_deepict_training(
    path: Path, *, say: Callable[[str], None] = lambda _text: None
) -> DeepictTraining:
    """Read the training sections of a config of DeePiCt.

    The tomograms to train on are written as a table of ours in the folder of the new model.

    Parameters
    ----------
    path
        Its config.yaml, 3D or 2D.
    say
        Receives what was assumed.

    Raises
    ------
    ConfigError
        Something in the config or its table is missing, unknown or contradictory; all problems are
        named.
    """
    values = read_config_file(path)
    three = is_deepict_config(values) == "3d"
    findings = Findings(str(path))
    read = _read(values, TRAINING_3D if three else TRAINING_2D, findings)
    findings.stop_on_errors()
    made = (_training_3d if three else _training_2d)(path, read, findings)
    findings.stop_on_errors()
    findings.tell(say)
    return made


def _read(values: dict[str, Any], schema: Schema, findings: Findings) -> dict[str, Any]:
    read = read_values(values, schema, findings)
    findings.notes[:] = [n for n in findings.notes if not n.startswith("without effect")]
    return read


def _training_3d(path: Path, read: dict[str, Any], findings: Findings) -> DeepictTraining:
    """Translate the 3D config."""
    base = base_folder(path, read["dataset_table"])
    model = base / read["model_path"]
    output = base / read["output_dir"] / "models" / model.stem
    classes = read["training.semantic_classes"]
    columns = {read["training.processing_tomo"]: "tomogram"} | {f"{c}_mask": c for c in classes}
    table = read_project_table(base / read["dataset_table"], base, ["tomo_name", *columns])
    rows = [_row(table, name, columns, findings) for name in read["tomos_sets.training_list"]]
    if not rows:
        findings.error("tomos_sets.training_list: expected a tomogram, found none")
    findings.stop_on_errors()
    held_out = round(1 - read[f"{_NET}.train_split"], 6)
    findings.note(f"validation: the last {100 * held_out:g} % of each tomogram on y")
    if read["cross_validation.active"]:
        findings.note(
            "cross_validation.active: one training of all tomograms, as DeePiCt in effect does; "
            "cross_validation in a config of ours trains folds"
        )
    values = {
        "tomograms": _write_table(output, rows),
        "output": output,
        "network": {
            "depth": read[f"{_NET}.depth"],
            "initial_features": read[f"{_NET}.initial_features"],
            "batch_norm": read[f"{_NET}.batch_norm"],
            "encoder_dropout": read[f"{_NET}.encoder_dropout"],
            "decoder_dropout": read[f"{_NET}.decoder_dropout"],
        },
        "classes": {name: {"labels": name} for name in classes},
        "patches": {
            "shape": (read["training.box_size"],) * 3,
            "sampling": "grid",
            "overlap": read["training.overlap"],
            "min_label_fraction": read["training.min_label_fraction"],
        },
        "augment": _augment_3d(read, findings),
        "optimizer": {
            "loss": _LOSSES[read[f"{_NET}.loss"]],
            "schedule": "plateau",
            "batch_size": read["training.batch_size"],
            "epochs": read[f"{_NET}.epochs"],
        },
        "validation": {"fraction": held_out},
    }
    config = settings_from(TrainConfig, values, str(path))
    return DeepictTraining(config, model, force=read["training.force_retrain"])


def _augment_3d(read: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """Translate what DeePiCt would have changed in its patches."""
    if not read[f"{_AUG}.rounds"]:
        return {"flips": False}
    findings.note(f"{_AUG}: applied to every patch (DeePiCt computes it and does not use it)")
    elastic = read[f"{_AUG}.elastic_alpha"]
    return {
        "flips": False,
        "rotation_degrees": read[f"{_AUG}.rot_angle"],
        "gaussian_noise": _NOISE_PART * read[f"{_AUG}.sigma_gauss"],
        "salt_and_pepper": read[f"{_AUG}.salt_pepper_p"],
        "salt_and_pepper_amplitude": read[f"{_AUG}.salt_pepper_ampl"],
        "elastic": elastic if elastic >= 1 else 0,
    }


def _training_2d(path: Path, read: dict[str, Any], findings: Findings) -> DeepictTraining:
    """Translate the 2D config: its final model, its evaluation, or both."""
    base = base_folder(path, read["data.training_data"])
    output = (base / read["training.production.model_output"]).with_suffix("")
    table = read_project_table(base / read["data.training_data"], base, ["data", "labels"])
    rows = []
    for row in table.rows:
        name = table.cell(row, "id") or Path(table.cell(row, "data") or "").stem
        if table.cell(row, "flip_y") not in (None, "0", "False"):
            findings.error(f"{table.path}: row {name}: flip_y: expected 0, found 1; flip the "
                           "labels first, so that they lie on the tomogram")  # fmt: skip
        rows.append(
            {
                "name": name,
                **_cells(table, row, name, {"data": "tomogram", "labels": "labels"}, findings),
            }
        )
    findings.stop_on_errors()
    drop = read["training.general.drop_empty"] >= 0.5
    values = {
        "tomograms": _write_table(output, rows),
        "output": output,
        "equalize": _equalize_2d(base, read),
        "network": {"kind": "unet2d", "depth": 4,
                    "initial_features": 4 * read["training.general.n_filters"]},
        "classes": {"organelle": {"labels": "labels", "values": _values_2d(read, findings)}},
        "patches": {
            "shape": (1, *read["preprocessing.slicing.patch_size"]),
            "sampling": "labelled" if drop else "uniform",
            "min_label_fraction": 0,
        },
        "augment": {"flips": read["training.general.flip"],
                    "quarter_turns": read["training.general.rotate"]},
        "optimizer": {
            "learning_rate": read["training.general.lr"],
            "schedule": "constant",
            "batch_size": read["training.general.batch_size"],
            **_length_2d(read),
        },
        "seed": read[f"{_EVALUATION}.random_seed"],
        "cross_validation": _folds_2d(read, findings),
    }  # fmt: skip
    findings.stop_on_errors()
    findings.note("flips and turns are applied to the final model too (DeePiCt leaves them out)")
    return DeepictTraining(settings_from(TrainConfig, values, str(path)))


def _trains_final(read: dict[str, Any]) -> bool:
    """Say whether a model of all tomograms is made: where it is asked for, or nothing else is."""
    return read["training.production.active"] or not read[f"{_EVALUATION}.active"]


def _length_2d(read: dict[str, Any]) -> dict[str, int]:
    """Return epochs and patience, which are one for the folds and the final model."""
    if _trains_final(read):
        return {"epochs": read["training.production.epochs"]}
    return {
        "epochs": read[f"{_EVALUATION}.epochs"],
        "patience": read[f"{_EVALUATION}.stopping_patience"],
    }


def _folds_2d(read: dict[str, Any], findings: Findings) -> dict[str, Any] | None:
    """Translate the evaluation, which is a cross-validation over tomograms."""
    if not read[f"{_EVALUATION}.active"]:
        return None
    folds, final = read[f"{_EVALUATION}.cv_folds"], _trains_final(read)
    if folds is None or folds < 2:
        findings.error(f"{_EVALUATION}.cv_folds: expected 2 or more, found {folds}")
    if final:
        findings.note(
            f"{_EVALUATION}: folds are trained for the epochs of training.production, as the final "
            "model is (DeePiCt: for their own, with patience)"
        )
    return {"folds": folds, "final": final}


def _equalize_2d(base: Path, read: dict[str, Any]) -> dict[str, Any] | None:
    section = "preprocessing.filtering"
    if not read[f"{section}.active"]:
        return None
    return {
        "target": base / read[f"{section}.target_spectrum"],
        "cutoff": read[f"{section}.lowpass_cutoff"],
        "smoothing": read[f"{section}.smoothen_cutoff"],
        "compat": "deepict",
    }


def _values_2d(read: dict[str, Any], findings: Findings) -> tuple[int, ...] | None:
    """Return the labels that become the class; None for all but 0."""
    mapping = read["preprocessing.remapping.mapping"] or {}
    if not read["preprocessing.remapping.active"] or not mapping:
        return None
    kept = tuple(int(label) for label, to in mapping.items() if label != "." and to)
    if not mapping.get(".", 0):
        return kept
    dropped = [label for label, to in mapping.items() if not to]
    if dropped:
        findings.error(
            "preprocessing.remapping.mapping: expected the labels that count, found '.' for all "
            f"but {', '.join(map(str, dropped))}; name those that count"
        )
    return None


def _row(
    table: ProjectTable, name: str, columns: dict[str, str], findings: Findings
) -> dict[str, str]:
    """Look one tomogram of the training list up."""
    rows = [row for row in table.rows if (row.get("tomo_name") or "").strip() == name]
    if len(rows) != 1:
        findings.error(
            f"{table.path}: expected one row with the tomo_name {name} of "
            f"tomos_sets.training_list, found {len(rows) or 'none'}"
        )
        return {}
    return {"name": as_file_name(name), **_cells(table, rows[0], name, columns, findings)}


def _cells(
    table: ProjectTable, row: dict[str, str], name: str, columns: dict[str, str], findings: Findings
) -> dict[str, str]:
    """Return the files of a row under the names of our table; name what is missing."""
    found = {}
    for column, ours in columns.items():
        path = table.file(row, column, name, findings)
        if path is None:
            findings.error(
                f"{table.path}: row {name}, column {column}: expected a file, found an empty cell"
            )
        found[ours] = str(path.absolute()) if path else ""
    return found


def _write_table(output: Path, rows: list[dict[str, str]]) -> Path:
    """Write a table of ours of the tomograms to train on."""
    path = output.absolute() / "tomograms.csv"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, csv_of_dicts(rows))
    except OSError as error:
        raise ConfigError(
            f"{output}: expected a folder that can be written, found: {error.strerror}"
        ) from error
    return path
