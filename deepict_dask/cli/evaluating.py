"""Commands that compare a result with the truth: evaluate picks, evaluate segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, OutputExistsError, WorkFailedError
from .options import (
    ChunksOption,
    ClusterOption,
    CompatOption,
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    open_session,
    say,
    three,
)

if TYPE_CHECKING:
    from ..evaluate.report import Evaluation

PredictedArgument = Annotated[Path | None, typer.Argument(metavar="PRED", help="The result.")]
TruthArgument = Annotated[Path | None, typer.Argument(metavar="TRUTH", help="The truth.")]
TableOption = Annotated[
    Path | None,
    typer.Option("--table", help="CSV of tomograms instead: name, predicted, truth and more"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
CsvOption = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE.csv", help="Write the figures too")
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw precision against recall: .png, .pdf, .svg"),
]
CurveOption = Annotated[
    Path | None, typer.Option("--curve", metavar="FILE.csv", help="Write the points of the curves")
]


def evaluate_picks(
    predicted: PredictedArgument = None,
    truth: TruthArgument = None,
    table: TableOption = None,
    radius: Annotated[
        float | None, typer.Option("--radius", help="Largest distance, voxels [default: 10]")
    ] = None,
    radius_nm: Annotated[
        float | None, typer.Option("--radius-nm", help="The same in nm; needs the voxel spacing")
    ] = None,
    compat: CompatOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    tomogram_shape: Annotated[
        str | None, typer.Option("--tomogram-shape", metavar="Z,Y,X", help="Voxels")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class, where a list has several")
    ] = None,
    true_class: Annotated[
        str | None, typer.Option("--true-class", help="What TRUTH calls this class")
    ] = None,
    as_json: JsonOption = False,
    csv: CsvOption = None,
    plot: PlotOption = None,
    curve: CurveOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Count true and false picks, matched one to one by falling score.

    Example: deepict-dask evaluate picks picks/picks.csv truth.csv --radius 10 --plot curve.png
    """
    from ..config import settings_from
    from ..evaluate.settings import PicksEvaluation
    from ..jobs import evaluate

    values: dict[str, Any] = {
        "radius": radius, "radius_nm": radius_nm, "class": class_name, "compat": compat,
        "true_class": true_class,
        "voxel_spacing_angstrom": voxel_spacing_angstrom,
        "tomogram_shape": None if tomogram_shape is None
        else three(tomogram_shape, "--tomogram-shape"),
    }  # fmt: skip
    settings = settings_from(PicksEvaluation, values, "evaluate picks")
    outputs = _outputs(csv, plot, curve, overwrite=overwrite)
    pair = _pair_or_table(predicted, truth, table)
    if pair is None:
        assert table is not None  # _pair_or_table has seen to it
        _show(evaluate.evaluate_picks_table(table, settings), as_json, outputs, f"{table}")
    else:
        score = evaluate.evaluate_picks(*pair, settings)
        _show(_single(pair[0], score), as_json, outputs, f"{predicted}")


def evaluate_segmentation(
    predicted: PredictedArgument = None,
    truth: TruthArgument = None,
    table: TableOption = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Scores above it count.")] = 0.5,
    region_mask: Annotated[
        Path | None, typer.Option("--region-mask", help="Compare inside it only")
    ] = None,
    label_value: Annotated[
        int | None, typer.Option("--label-value", help="Voxels of TRUTH equal to this are true")
    ] = None,
    predicted_label_value: Annotated[
        int | None,
        typer.Option("--predicted-label-value", help="Label of PREDICTED, where it holds labels"),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of a multi-class score map")
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", help="Voxels drawn for the curve; 0: all, by a histogram.")
    ] = 5000,
    seed: Annotated[int, typer.Option("--seed", help="Another one draws other voxels.")] = 0,
    compat: CompatOption = None,
    as_json: JsonOption = False,
    csv: CsvOption = None,
    plot: PlotOption = None,
    curve: CurveOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Compare a score map or a segmentation with the true one: Dice, precision, recall, AUPRC.

    Example: deepict-dask evaluate segmentation scores.zarr mask.mrc --threshold 0.5 --json
    """
    from ..config import settings_from
    from ..evaluate.settings import SegmentationEvaluation
    from ..jobs import evaluate

    values: dict[str, Any] = {
        "threshold": threshold, "label_value": label_value, "class": class_name,
        "predicted_label_value": predicted_label_value,
        "sample": sample, "seed": seed, "compat": compat,
    }  # fmt: skip
    settings = settings_from(SegmentationEvaluation, values, "evaluate segmentation")
    outputs = _outputs(csv, plot, curve, overwrite=overwrite)
    pair = _pair_or_table(predicted, truth, table)
    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, progress=progress
    ) as session:
        if pair is None:
            assert table is not None  # _pair_or_table has seen to it
            evaluation = evaluate.evaluate_segmentation_table(
                session, table, settings, region_mask=region_mask
            )
        else:
            score = evaluate.evaluate_segmentation(
                session, *pair, settings, region_mask=region_mask
            )
            evaluation = _single(pair[0], score)
    _show(evaluation, as_json, outputs, f"{table or predicted}")


def _pair_or_table(
    predicted: Path | None, truth: Path | None, table: Path | None
) -> tuple[Path, Path] | None:
    """Return what to compare, None for a table; refuse both and neither."""
    if predicted is not None and truth is not None and table is None:
        return predicted, truth
    if predicted is None and table is not None:
        return None
    given = [name for name, path in (("PRED", predicted), ("TRUTH", truth)) if path is not None]
    given += ["--table"] if table is not None else []
    raise ConfigError(
        f"evaluate: expected PRED and TRUTH, or --table, found {' and '.join(given) or 'neither'}; "
        "give one or the other"
    )


def _outputs(
    csv: Path | None, plot: Path | None, curve: Path | None, *, overwrite: bool
) -> dict[str, Path]:
    """Return the files to write by option; refuse before the work what could not be written."""
    from ..evaluate.plot import check_plot_path

    named = {"--csv": csv, "--plot": plot, "--curve": curve}
    outputs = {option: path for option, path in named.items() if path is not None}
    if plot is not None:
        check_plot_path(plot)
    if len(set(outputs.values())) < len(outputs):
        raise ConfigError(f"{', '.join(outputs)}: expected different files, found one name twice")
    for option, path in outputs.items():
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path}: expected no such output, found one; use --overwrite")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{option} {path}: expected a folder to write into, found none")
    return outputs


def _single(predicted: Path, score: Any) -> Evaluation:
    """Return one comparison as an evaluation, named by its file without endings."""
    from ..evaluate.report import EvaluatedTomogram, Evaluation
    from ..io.datasets.names import short_name

    return Evaluation((EvaluatedTomogram(short_name(predicted), score),))


def _show(evaluation: Evaluation, as_json: bool, outputs: dict[str, Path], what: str) -> None:
    """Print the figures, write what else was asked for, and fail where a tomogram failed."""
    from ..evaluate import report
    from ..evaluate.plot import draw_curves
    from ..io.replace import replace_file

    if "--csv" in outputs:
        replace_file(outputs["--csv"], report.as_csv(evaluation))
    if "--curve" in outputs:
        replace_file(outputs["--curve"], report.as_curve_csv(evaluation))
    if "--plot" in outputs and evaluation.scores:
        path = outputs["--plot"]
        replace_file(path, draw_curves(evaluation, path.suffix, title=Path(what).name))
    say(report.as_json(evaluation) if as_json else report.as_text(evaluation))
    if evaluation.failed:
        names = ", ".join(one.name for one in evaluation.failed)
        raise WorkFailedError(
            f"{what}: {len(evaluation.failed)} of {len(evaluation.tomograms)} tomograms failed: "
            f"{names}; the reason is beside each name"
        )


def register(evaluate_app: typer.Typer) -> None:
    """Add the commands of this file."""
    evaluate_app.command("picks")(evaluate_picks)
    evaluate_app.command("segmentation")(evaluate_segmentation)
