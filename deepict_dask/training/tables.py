"""The figures of each epoch, as a table and as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..io.csv_text import csv_of_dicts
from ..io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["draw_losses", "write_metrics"]


def write_metrics(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write a CSV table, a row for each epoch; it appears whole or not at all.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.csv")
    >>> write_metrics(path, [{"epoch": 1, "train_loss": 0.5}])
    >>> path.read_text().splitlines()
    ['epoch,train_loss', '1,0.5']
    """
    rounded = [
        {n: round(v, 6) if n != "learning_rate" else v for n, v in row.items()} for row in rows
    ]
    replace_file(path, csv_of_dicts(rounded))


def draw_losses(path: Path, rows: Sequence[dict[str, float]], *, title: str = "") -> None:
    """Write a PNG of the losses, and of the validation's Dice, against the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left: Any = figure.add_subplot()
    for name, colour, label in (
        ("train_loss", "#0b5fa5", "training loss"), ("val_loss", "#d95f02", "validation loss"),
        ("val_dice", "#1b9e77", "validation Dice"),
    ):  # fmt: skip
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            left.plot(*zip(*points, strict=True), color=colour, label=label, marker=".")
    left.set(xlabel="epoch", ylabel="loss, Dice", title=title)
    left.set_ylim(bottom=0)
    left.grid(color="#dcdcdc")
    left.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    replace_file(path, content.getvalue())
