"""Figures as one page: a table for each benchmark, and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Result = dict[str, Any]


def write_page(results: dict[str, Any], folder: Path, name: str) -> Path:
    """Write ``NAME.md`` and its plots; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_head(results)]
    for key, result in results["benchmarks"].items():
        parts.append(section(result))
        if key in _PLOTS and _is_table(result.get(_PLOTS[key][0])):
            image = folder / f"{name}_{key}.png"
            _plot(_PLOTS[key][1], result, image)
            parts.append(f"![{result['name']}]({image.name})\n")
    page = folder / f"{name}.md"
    page.write_text("\n".join(parts))
    return page


def _head(results: dict[str, Any]) -> str:
    machine = ", ".join(f"{key}: {value}" for key, value in results["machine"].items())
    return (
        "# Benchmarks\n\n"
        f"Machine: {machine}.\n\n"
        "Ratios compare what ran side by side on the same input. Rates depend on the machine and "
        "on what else it did: the load average when a benchmark started and ended is beside it; "
        "above the number of cores, rates are too low.\n"
    )


def section(result: Result) -> str:
    """Return one benchmark as Markdown: single figures, then tables.

    Examples
    --------
    >>> print(section({"name": "label", "ratio": 2.0}))
    ## label
    <BLANKLINE>
    | what | figure |
    |---|---|
    | ratio | 2.0 |
    <BLANKLINE>
    """
    single, tables = [], []
    for key, value in result.items():
        if _is_table(value):
            tables.append(f"**{key}**\n\n{table(value['columns'], value['rows'])}")
        elif isinstance(value, dict):
            single += [[f"{key}: {inner}", found] for inner, found in value.items()]
        elif key != "name":
            single.append([key, value])
    return "\n".join([f"## {result['name']}\n", table(["what", "figure"], single), *tables])


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"columns", "rows"}


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Return a figure as it is read best.

    Examples
    --------
    >>> _cell(0.000012345), _cell(12.5), _cell((1, 2)), _cell(None)
    ('1.23e-05', '12.5', '1 x 2', '')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return str(value) if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"
    if isinstance(value, tuple | list):
        return " x ".join(map(str, value))
    return str(value).replace("|", "/")


def _plot(draw: Callable[[Any, Result], None], result: Result, path: Path) -> None:
    """Draw one plot into a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, result)
    figure.savefig(path, dpi=110)


def _rates(axes: Any, result: Result) -> None:
    """Draw a bar for each rival that was measured: from the store, and without reading."""
    measured = [row for row in result["rates"]["rows"] if _figure(row[1]) or _figure(row[2])]
    places = range(len(measured))
    axes.barh([i + 0.2 for i in places], [_figure(row[1]) for row in measured], 0.4,
              label="from store")  # fmt: skip
    axes.barh([i - 0.2 for i in places], [_figure(row[2]) for row in measured], 0.4,
              label="without reading and writing")  # fmt: skip
    axes.set_yticks(list(places), [row[0] for row in measured], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("Mvox/s")
    axes.legend(fontsize=7)


def _figure(value: object) -> float:
    return value if isinstance(value, float) else 0.0


def _plans(axes: Any, result: Result) -> None:
    """Draw the workers' use of their time against the length of a task."""
    rows = result["utilisation"]["rows"]
    for n in sorted({row[0] for row in rows}):
        mine = [row for row in rows if row[0] == n]
        (line,) = axes.plot([r[1] for r in mine], [r[2] for r in mine], "o-", label=f"{n} workers")
        axes.plot([r[1] for r in mine], [r[3] for r in mine], "--", color=line.get_color())
    axes.set(xscale="log", ylim=(0, 1.05), xlabel="task, s")
    axes.set_ylabel("part of their time that workers work (dashed: model)")
    axes.legend(fontsize=7)


def _shares(axes: Any, result: Result) -> None:
    """Draw what part of the time each stage takes."""
    rows = result["stages"]["rows"]
    axes.barh([row[0] for row in rows], [row[2] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("share of the time of all stages")


def _scaling(axes: Any, result: Result) -> None:
    """Draw strong and weak scaling of each job."""
    rows = result["scaling"]["rows"]
    counts = sorted({row[1] for row in rows})
    for job in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == job]
        (line,) = axes.plot(counts, [r[3] for r in mine], "o-", label=f"{job}, strong")
        axes.plot(counts, [r[4] for r in mine], "s--", color=line.get_color(), label=f"{job}, weak")
    axes.plot(counts, counts, "k:", lw=0.8, label="ideal, strong")
    axes.axhline(1, color="k", lw=0.8, label="ideal, weak")
    axes.set_xticks(counts)
    axes.set(xlabel="workers", ylim=(0, None))
    axes.set_ylabel("speed of n / of 1; weak: time of 1 / of n")
    axes.legend(fontsize=7)


def _memory(axes: Any, result: Result) -> None:
    """Draw peaks against the size of the volume."""
    columns, rows = result["peaks"]["columns"], result["peaks"]["rows"]
    names = [column.split(",")[0] for column in columns[1:-2]]
    for row in rows:
        axes.plot(names, row[1:-2], "o-", label=row[0])
    axes.axhline(rows[0][-2], color="k", lw=0.8, ls="--", label="budget")
    axes.set(ylabel="peak of a worker, MiB", ylim=(0, None))
    axes.legend(fontsize=7)


_PLOTS: dict[str, tuple[str, Callable[[Any, Result], None]]] = {
    "plans": ("utilisation", _plans),
    "run": ("stages", _shares),
    "scaling": ("scaling", _scaling),
    "memory": ("peaks", _memory),
    "equalize": ("rates", _rates),
    "rivals_label": ("rates", _rates),
    "rivals_inference": ("rates", _rates),
}
"""For each benchmark, the table that its plot needs and what draws it."""
