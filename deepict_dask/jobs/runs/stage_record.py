"""Which request each finished output of a tomogram answers: what answers it is not made again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["StageRecord"]


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

    def begin(self) -> None:
        """Mark the folder as one of results, before the first output has its name."""
        if not self._path.exists():
            replace_file(self._path, "{}\n")

    def _keys(self) -> dict[str, str]:
        try:
            keys: dict[str, str] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return keys

    def answers(self, output: str, key: str) -> bool:
        """Say whether a finished output of this name answers the request."""
        return self._keys().get(output) == key and (self._folder / output).exists()

    def promise(self, output: str, key: str) -> None:
        """Note the request of an output that is not there yet.

        Once it has its name it answers the request, though the run be killed before it could note
        that. Of an output that is there, which another one will replace, nothing is noted yet.
        """
        if not (self._folder / output).exists():
            self._write(output, key)

    def confirm(self, output: str) -> None:
        """Tell that an earlier output is whole and will not be made again."""
        self._on_answer(output)

    def outputs(self) -> list[str]:
        """Return the names of the finished outputs that are there."""
        return [output for output in self._keys() if (self._folder / output).exists()]

    def note(self, output: str, key: str) -> None:
        """Note that an output is finished."""
        self._write(output, key)
        self._on_answer(output)

    def _write(self, output: str, key: str) -> None:
        """Note a request, in one step; what is noted already is not written again."""
        keys = self._keys()
        if keys.get(output) != key:
            replace_file(self._path, json.dumps({**keys, output: key}, indent=2) + "\n")
