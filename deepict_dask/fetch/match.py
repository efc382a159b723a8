"""Which paths ``--match`` means, and which folders need not even be listed.

``*`` and ``?`` stay inside one folder, ``**`` crosses folders; a pattern without ``/`` is held
against the file's name in whatever folder; one that ends in ``/`` means all below that folder.
A folder that no pattern can reach is never asked for: deposits have folders of 10,000 frames.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["matches", "may_hold"]


def matches(path: str, pattern: str) -> bool:
    """Say whether a relative path is meant by a pattern.

    Examples
    --------
    >>> matches("DEF/tomograms/TS_026.rec", "DEF/tomograms/*")
    True
    >>> matches("DEF/tomograms/TS_026.rec", "DEF/*"), matches("DEF/tomograms/TS_026.rec", "DEF/**")
    (False, True)
    >>> matches("DEF/tomograms/TS_026.rec", "*.rec"), matches("DEF/labels/a.mrc", "DEF/")
    (True, True)
    """
    return _full(path.split("/"), _parts(pattern))


def may_hold(folder: str, pattern: str) -> bool:
    """Say whether files below a folder can be meant by a pattern.

    Examples
    --------
    >>> [may_hold(f, "DEF/tomograms/*") for f in ("DEF", "DEF/tomograms", "DEF/frames", "VPP")]
    [True, True, False, False]
    """
    return _prefix(folder.split("/"), _parts(pattern))


def _parts(pattern: str) -> list[str]:
    text = pattern.removeprefix("./").removeprefix("/")
    if text.endswith("/"):
        text += "**"
    return text.split("/") if "/" in text else ["**", text]


def _full(path: list[str], pattern: list[str]) -> bool:
    """Hold all of a path against all of a pattern."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        rest = pattern[1:]
        return (not rest and bool(path)) or any(_full(path[n:], rest) for n in range(len(path)))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _full(path[1:], pattern[1:])


def _prefix(folder: list[str], pattern: list[str]) -> bool:
    """Say whether something below the folder can still match."""
    if pattern[0] == "**" or not folder:
        return True
    return (
        len(pattern) > 1 and fnmatchcase(folder[0], pattern[0]) and _prefix(folder[1:], pattern[1:])
    )
