"""How much of the time a GPU is busy, as its driver says."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["GpuBusy"]

MILLISECONDS = 100
"""Between two questions; a driver tells the part of the last sixth of a second, or so."""


class GpuBusy:
    """Asks ``nvidia-smi`` again and again for as long as a block of code runs.

    Busy is the time in which any kernel runs, as ``utilization.gpu`` counts it.

    Parameters
    ----------
    gpu
        Number or UUID.
    """

    def __init__(self, gpu: str) -> None:
        self._command = [
            "nvidia-smi", f"--id={gpu}", "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits", f"--loop-ms={MILLISECONDS}",
        ]  # fmt: skip
        self.part: float | None = None
        """Of the time, 0..1, once the block has ended; None where nobody answers."""

    def __enter__(self) -> GpuBusy:
        self._answers = tempfile.TemporaryFile()
        self._asking: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # there is no such program
            self._asking = subprocess.Popen(
                self._command, stdout=self._answers, stderr=subprocess.DEVNULL
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._asking is not None:
            self._asking.terminate()
            self._asking.wait()
        with self._answers as file:
            file.seek(0)
            lines = file.read().decode(errors="replace").split()
        parts = [int(line) / 100 for line in lines if line.isdigit()]
        self.part = round(sum(parts) / len(parts), 3) if parts else None
