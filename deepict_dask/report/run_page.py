"""The part of a report that is about the whole run: totals, the table of tomograms, settings.

Failures come first; a click on a column's head sorts. With thousands of tomograms a row holds a
thumbnail of 2 kB and a link to the tomogram's own page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from .elements import Html, element, join
from .tomogram_page import badge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .sources import RunSource, TomogramSource

__all__ = ["run_part", "settings_part"]

_ORDER = ("failed", "stopped", "unfinished", "running", "waiting", "done")
"""States, from those that need attention to those that do not."""


def run_part(
    run: RunSource, thumbnails: Mapping[str, str | None], pages: Mapping[str, str]
) -> Html:
    """Return the part of a report that is about the whole run.

    Parameters
    ----------
    run
        What was found on disk.
    thumbnails
        Data URI by tomogram, None where there is none.
    pages
        Address of a tomogram's page, relative to the report, for those that have one.
    """
    return join(
        element("header", element("h1", _title(run)), _by(run)),
        _totals(run),
        _table(run, thumbnails, pages),
    )


def settings_part(run: RunSource) -> Html:
    """Return settings and versions."""
    versions = join(*(join(element("dt", k), element("dd", v)) for k, v in run.versions.items()))
    if run.config is None:
        settings = element("p", "The run's plan does not hold its settings.", class_="quiet")
    else:
        text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        settings = element("pre", text, tabindex=0, aria_label="settings")
    return element(
        "section",
        element("h2", "Settings and versions"),
        element("details", element("summary", "Settings, every default spelt out"), settings),
        element("details", element("summary", "Versions"), element("dl", versions)),
        class_="card",
    )


def _title(run: RunSource) -> str:
    return f"Picks in {run.folder.name}" if run.kind == "picks" else f"Run {run.folder.name}"


def _by(run: RunSource) -> Html:
    """Return when, where and by whom."""
    who = " on ".join(str(run.by[key]) for key in ("user", "host") if run.by.get(key))
    parts = [str(run.folder), f"begun {run.started}" if run.started else "", who]
    return element("p", " · ".join(part for part in parts if part), class_="quiet")


def _totals(run: RunSource) -> Html:
    """Return the numbers that sum the run up."""
    states = [one.state for one in run.tomograms]
    cells = [(str(len(states)), "tomogram" if len(states) == 1 else "tomograms")]
    cells += [(str(states.count(s)), s) for s in _ORDER if s in states]
    for name in run.pick_names:
        total = sum(one.n_picks(name) or 0 for one in run.tomograms)
        cells.append((str(total), name))
    return element(
        "ul",
        *(element("li", element("b", number), " ", name) for number, name in cells),
        class_="totals",
        aria_label="totals",
    )


def _table(run: RunSource, thumbnails: Mapping[str, str | None], pages: Mapping[str, str]) -> Html:
    """Return the table of tomograms."""
    has_reasons = any(one.reason for one in run.tomograms)
    texts = ["", "tomogram", "state", *(["reason"] if has_reasons else [])]
    heads = [*texts, *run.pick_names, "time (s)"]
    numbers = range(len(texts), len(heads))
    row = element("tr", *(_head(n, i, is_number=i in numbers) for i, n in enumerate(heads)))
    ordered = sorted(run.tomograms, key=lambda one: _rank(one.state))
    rows = (
        _row(run, one, thumbnails.get(one.name), pages.get(one.name), has_reasons=has_reasons)
        for one in ordered
    )
    find = element(
        "label", "show tomograms with ", element("input", type="search", class_="find"),
        class_="find-label",
    )  # fmt: skip
    return element(
        "section",
        find if len(run.tomograms) > 1 else None,
        element(
            "div",
            element(
                "table", element("thead", row), element("tbody", *rows), class_="tomograms"
            ),
            class_="scroll", tabindex=0, role="region", aria_label="table of tomograms",
        ),
    )  # fmt: skip


def _head(name: str, column: int, *, is_number: bool) -> Html:
    """Return the head of a column, which sorts."""
    if not name:
        return element("td")
    button = element("button", name, type="button", data_column=column)
    kind = "number" if is_number else None
    return element("th", button, scope="col", aria_sort="none", class_=kind)


def _rank(state: str) -> int:
    return _ORDER.index(state) if state in _ORDER else len(_ORDER)


def _row(
    run: RunSource, one: TomogramSource, thumbnail: str | None, page: str | None, *,
    has_reasons: bool,
) -> Html:  # fmt: skip
    """Return the row of a tomogram."""
    counts = (one.n_picks(name) for name in run.pick_names)
    link = element("a", one.name, href=quote(page)) if page else one.name
    image = None
    if thumbnail:
        image = element("img", src=thumbnail, alt=f"slice of {one.name}", class_="thumbnail")
    seconds = "" if one.seconds is None else f"{one.seconds:.1f}"
    return element(
        "tr",
        element("td", image),
        element("th", link, scope="row", data_value=one.name),
        element("td", badge(one.state), data_value=_rank(one.state)),
        element("td", one.reason, class_="reason") if has_reasons else None,
        *(_number("" if n is None else n) for n in counts),
        _number(seconds),
    )


def _number(value: Any) -> Html:
    return element("td", value, class_="number", data_value=value if value != "" else -1)
