"""Which request each finished output of a tomogram answers: what answers it is not made again.

What was warned of while an output was made is noted with it. A run that finds the output finished
does not look at the tomogram again, and says the same of it all the same.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["StageRecord"]

_WARNINGS = "warnings"
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
            found: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _keys(self) -> dict[str, str]:
        return {name: key for name, key in self._read().items() if name != _WARNINGS}

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
        return self._keys().get(output) == key and (self._folder / output).exists()

    def promise(self, output: str, key: str) -> None:
        """Note the request of an output that is not there yet.

        Once it has its name it answers the request, though the run be killed before it could note
        that. Of an output that is there, which another one will replace, nothing is noted yet.
        """
        if not (self._folder / output).exists():
            self._write(output, key, self._heard)

    def confirm(self, output: str) -> None:
        """Tell that an earlier output is whole and will not be made again."""
        self._on_answer(output)

    def outputs(self) -> list[str]:
        """Return the names of the finished outputs that are there."""
        return [output for output in self._keys() if (self._folder / output).exists()]

    def note(self, output: str, key: str) -> None:
        """Note that an output is finished, and what was warned of before."""
        self._write(output, key, self._heard)
        self._on_answer(output)

    def _write(self, output: str, key: str, warnings: Sequence[str]) -> None:
        """Note a request, in one step; what is noted already is not written again."""
        before = self._read()
        told = {**before.get(_WARNINGS, {}), output: list(warnings)}
        told = {name: texts for name, texts in told.items() if texts}
        after = {**self._keys(), output: key} | ({_WARNINGS: told} if told else {})
        if after != before:
            replace_file(self._path, json.dumps(after, indent=2) + "\n")
