"""A whole page: the template with its style and script in it, so that one file is all.

A policy in the page forbids it to load anything; pictures are data in the page itself. What a later
report needs of a finished page stands in its head: the key of what it shows, and the thumbnail,
which is also the icon of the browser's tab.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

from .elements import Html, element

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_head", "render"]

_SLOT = re.compile(r"\{\{(\w+)\}\}")
_HEAD_BYTES = 1 << 16


def render(*, title: str, body: Html, key: str = "", thumbnail: str | None = None) -> str:
    """Return a page.

    Parameters
    ----------
    title
        Of the browser's tab.
    body
        What it shows.
    key
        Of what it shows, so that it is not made twice.
    thumbnail
        Data URI of a small picture.

    Examples
    --------
    >>> page = render(title="a < b", body=Html("<p>c</p>"), key="k")
    >>> "<title>a &lt; b</title>" in page, "<p>c</p>" in page, "{{" in page
    (True, True, False)
    """
    parts = {
        "title": element("title", title),
        "key": element("meta", name="deepict-dask-key", content=key),
        "icon": element("link", rel="icon", href=thumbnail or "data:,"),
        "style": _text("style.css"),
        "script": _text("script.js"),
        "body": body,
    }
    return _SLOT.sub(lambda slot: parts[slot[1]], _text("page.html"))


def _text(name: str) -> str:
    return (files(__package__) / "template" / name).read_text(encoding="utf-8")


def read_head(path: Path) -> tuple[str, str | None]:
    """Return key and thumbnail of a page that was made before; an empty key where there is none.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.html")
    >>> _ = path.write_text(render(title="a", body=Html(""), key="k", thumbnail="data:b"))
    >>> read_head(path), read_head(path.with_name("c.html"))
    (('k', 'data:b'), ('', None))
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return "", None
    key = re.search(r'name="deepict-dask-key" content="([^"]*)"', head)
    icon = re.search(r'rel="icon" href="(data:[^"]*)"', head)
    thumbnail = icon[1] if icon and icon[1] != "data:," else None
    return (key[1] if key else ""), thumbnail
