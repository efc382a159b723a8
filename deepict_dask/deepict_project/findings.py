"""What is odd about a DeePiCt project, at three levels.

Errors stop the run before any work and are raised together, as one message. Warnings change results
or surprise; notes say what was assumed or left out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Findings"]

log = logging.getLogger("deepict_dask")
_SHOWN = 6


@dataclass
class Findings:
    """Problems of one config, in the order in which they were found.

    Examples
    --------
    >>> findings = Findings("config.yaml")
    >>> findings.error("prediction.semantic_class: is required, found nothing")
    >>> findings.stop_on_errors()
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: config.yaml: prediction.semantic_class: is required, \
found nothing
    """

    where: str
    """The config file, in front of every message."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    for_run: bool = True
    """False where the config is only read: then missing files are no errors."""

    def error(self, text: str) -> None:
        """Add what makes the run impossible."""
        self.errors.append(text)

    def absent(self, text: str) -> None:
        """Add what only a run needs."""
        (self.error if self.for_run else self.warn)(text)

    def warn(self, text: str) -> None:
        """Add what changes results or surprises."""
        self.warnings.append(text)

    def note(self, text: str) -> None:
        """Add what was assumed or left out."""
        self.notes.append(text)

    def stop_on_errors(self) -> None:
        """Raise one ConfigError that holds all errors, if there is any."""
        if not self.errors:
            return
        shown = "; ".join(self.errors[:_SHOWN])
        more = len(self.errors) - _SHOWN
        raise ConfigError(f"{self.where}: {shown}" + (f"; and {more} more" if more > 0 else ""))

    def tell(self, say: Callable[[str], None]) -> None:
        """Log the warnings and say the notes."""
        for text in self.warnings:
            log.warning("%s: %s", self.where, text)
        for text in self.notes:
            say(f"note: {text}")
