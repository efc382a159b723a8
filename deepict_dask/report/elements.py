"""HTML and SVG as values: text is escaped wherever it comes from, markup never is twice.

`element` makes one element; what is not markup already is escaped, in text and in attributes. So
nothing that a user has named (tomograms, classes, paths, reasons) can become markup. `script_data`
does the same for JSON inside a script element.
"""

from __future__ import annotations

import html
import json
from typing import Any

__all__ = ["Html", "element", "join", "script_data"]

_VOID = frozenset({"img", "input", "meta", "link", "br", "circle", "line", "rect", "polyline"})


class Html(str):
    """Text that is markup, and safe.

    Examples
    --------
    >>> isinstance(element("b", "5 < 6"), Html)
    True
    """

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Return an element.

    Parameters
    ----------
    name
        Such as ``td``.
    children
        Markup stays as it is, all else becomes escaped text; None is left out.
    attributes
        A trailing underscore goes (``class_``), others become hyphens; True stands for an
        attribute without a value, None and False for none.

    Examples
    --------
    >>> element("td", "<script>", element("br"), class_="wide", data_value=3)
    '<td class="wide" data-value="3">&lt;script&gt;<br></td>'
    >>> element("input", type="checkbox", checked=True, disabled=False)
    '<input type="checkbox" checked>'
    """
    start = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    if name in _VOID and not children:
        return Html(start if name in {"img", "input", "meta", "link", "br"} else start[:-1] + "/>")
    return Html(f"{start}{join(*children)}</{name}>")


def join(*parts: Any) -> Html:
    """Return parts one after the other, escaped where they are not markup.

    Examples
    --------
    >>> join("a & b ", element("b", "c"), None, 3)
    'a &amp; b <b>c</b>3'
    """
    return Html("".join(_escaped(part) for part in parts if part is not None))


def script_data(value: Any, **attributes: Any) -> Html:
    r"""Return a script element that holds JSON, whatever texts are in it.

    Examples
    --------
    >>> print(script_data({"name": "</script>"}, id="d"))
    <script type="application/json" id="d">{"name":"\u003c/script>"}</script>
    """
    text = json.dumps(value, separators=(",", ":"))  # ASCII: line separators are escaped too
    return element(
        "script", Html(text.replace("<", "\\u003c")), type="application/json", **attributes
    )


def _escaped(part: Any) -> str:
    return str(part) if isinstance(part, Html) else html.escape(str(part))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    name = {"viewbox": "viewBox"}.get(name, name)
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
