"""Which request each finished output of a tomogram answers: what answers it is not made again.

What was warned of while an output was made is noted with it. A run that finds the output finished
does not look at the tomogram again, and says the same of it all the same.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...engine.patience import patiently
from ...io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["StageRecord"]

_WARNINGS = "warnings"
_REPLACED = "replaced"
"""For each output that another one is to replace, which one it was when that began."""
_BESIDE = (_WARNINGS, _REPLACED)
"""Beside the requests: no output is called so."""


class StageRecord:
    """Which request each finished output of a tomogram answers.

    Parameters
    ----------
    folder
        The tomogram's folder of results.
    on_answer
        Told the name of each output that is made or confirmed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> record = StageRecord(pathlib.Path(tempfile.mkdtemp()))
    >>> record.answers("picks", "key"), record.note("picks", "key")
    (False, None)
    """

    def __init__(
        self, folder: Path, on_answer: Callable[[str], None] = lambda _output: None
    ) -> None:
        self._folder = folder
        self._on_answer = on_answer
        self._path = folder / "stages.json"
        self._heard: list[str] = []

    def begin(self) -> None:
        """Mark the folder as one of results, before the first output has its name."""
        if not self._path.exists():
            replace_file(self._path, "{}\n")

    def _read(self) -> dict[str, Any]:
        try:
            text = patiently(self._path.read_text, f"reading {self._path}")
            found: dict[str, Any] = json.loads(text)
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _keys(self) -> dict[str, str]:
        return {name: key for name, key in self._read().items() if name not in _BESIDE}

    def hear(self, warning: str) -> None:
        """Take a warning down; it is noted with the outputs that are finished after it."""
        if warning not in self._heard:
            self._heard.append(warning)

    def warnings_of(self, output: str) -> list[str]:
        """Return what was warned of while an output was made.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> record = StageRecord(pathlib.Path(tempfile.mkdtemp()))
        >>> record.hear("its voxel spacing is odd"), record.note("picks", "key")
        (None, None)
        >>> record.warnings_of("picks")
        ['its voxel spacing is odd']
        """
        return list(self._read().get(_WARNINGS, {}).get(output, ()))

    def answers(self, output: str, key: str) -> bool:
        """Say whether a finished output of this name answers the request."""
        found, path = self._read(), self._folder / output
        if found.get(output) != key or not path.exists():
            return False
        return found.get(_REPLACED, {}).get(output) in (None, _identity(path))

    def promise(self, output: str, key: str) -> None:
        """Note the request of an output that is not there yet.

        Once it has its name it answers the request, though the run be killed before it could note
        that. Of an output that is there, which another one will replace, it is noted which one it
        is: another one of its name does not answer its request.
        """
        path = self._folder / output
        if not path.exists():
            self._write(output, key, self._heard)
            return
        before = self._read()
        if output in before and output not in before.get(_REPLACED, {}):
            replaced = {**before.get(_REPLACED, {}), output: _identity(path)}
            self._replace({**before, _REPLACED: replaced})

    def confirm(self, output: str) -> None:
        """Tell that an earlier output is whole and will not be made again."""
        found = self._read()
        if output in found.get(_REPLACED, {}):
            self._write(output, found[output], self.warnings_of(output))
        self._on_answer(output)

    def outputs(self) -> list[str]:
        """Return the names of the finished outputs that are there."""
        return [output for output in self._keys() if (self._folder / output).exists()]

    def note(self, output: str, key: str) -> None:
        """Note that an output is finished, and what was warned of before."""
        self._write(output, key, self._heard)
        self._on_answer(output)

    def forget(self) -> list[str]:
        """Let no output answer a request, before they are removed; return their names, kept here.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> record = StageRecord(pathlib.Path(tempfile.mkdtemp()))
        >>> record.note("picks", "key"), record.forget(), record.answers("picks", "key")
        (None, ['picks'], False)
        """
        names = list(self._keys())
        if names:
            self._replace(dict.fromkeys(names, ""))
        return names

    def _write(self, output: str, key: str, warnings: Sequence[str]) -> None:
        """Note a request, in one step; what is noted already is not written again."""
        before = self._read()
        told = {**before.get(_WARNINGS, {}), output: list(warnings)}
        told = {name: texts for name, texts in told.items() if texts}
        replaced = {o: which for o, which in before.get(_REPLACED, {}).items() if o != output}
        beside = {_WARNINGS: told, _REPLACED: replaced}
        keys = {**self._keys(), output: key}
        after = keys | {name: notes for name, notes in beside.items() if notes}
        if after != before:
            self._replace(after)

    def _replace(self, notes: Mapping[str, Any]) -> None:
        replace_file(self._path, json.dumps(notes, indent=2) + "\n")


def _identity(path: Path) -> list[int]:
    """Return what tells an output from one that takes its name."""
    found = path.stat()
    return [found.st_ino, found.st_mtime_ns]
