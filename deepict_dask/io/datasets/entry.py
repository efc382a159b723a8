"""What is known of one tomogram of a run, and of all that a source names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Dataset", "TomogramEntry"]


@dataclass(frozen=True)
class TomogramEntry:
    """One tomogram of a run.

    Examples
    --------
    >>> from pathlib import Path
    >>> TomogramEntry("TS_001", Path("TS_001.rec")).file_of("lamella") is None
    True
    """

    name: str
    """Name of its folder of results."""
    path: Path
    files: dict[str, Path] = field(default_factory=dict)
    """Further files by the table's column names, or by the names of labels."""
    voxel_spacing_angstrom: float | None = None
    """What the source says about it, which overrides the header; None where it says nothing."""
    picks: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Particle lists by class."""
    kind: str = "volume"
    """Kind of the source."""
    columns: frozenset[str] = frozenset()
    """Names under which the source has further files, of this tomogram or of others."""

    def file_of(self, column: str) -> Path | None:
        """Return a further file of this tomogram, None where the cell is empty."""
        return self.files.get(column)

    def told_spacing(self, of_config: float | None) -> float | None:
        """Return the voxel spacing (Å) that counts instead of the header's, None for the header's.

        Parameters
        ----------
        of_config
            What a config says of all tomograms; it comes before what the source says.

        Examples
        --------
        >>> from pathlib import Path
        >>> entry = TomogramEntry("TS_001", Path("TS_001.rec"), voxel_spacing_angstrom=10.0)
        >>> entry.told_spacing(None), entry.told_spacing(13.48)
        (10.0, 13.48)
        """
        return of_config or self.voxel_spacing_angstrom


@dataclass(frozen=True)
class Dataset:
    """The tomograms that a source names.

    Examples
    --------
    >>> from pathlib import Path
    >>> Dataset("volume", (TomogramEntry("TS_001", Path("TS_001.rec")),)).notes
    ()
    """

    kind: str
    entries: tuple[TomogramEntry, ...]
    notes: tuple[str, ...] = ()
    """What was skipped, taken or renamed."""
    warnings: tuple[str, ...] = ()
    """What was left out although it could have been meant."""
    columns: frozenset[str] = frozenset()
    """Columns of a table, of which all cells may be empty."""
