"""A volume that tasks write chunk by chunk and that appears when it is whole.

Tasks always write a Zarr store in the partial folder. At the end the store takes the output's name,
or is streamed slab by slab into an MRC or TIFF file that does.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, DeepictError
from ..engine import StagedOutput
from ..engine.content import note_whole
from ..engine.staging import ZARR_MARKS
from ..io.endings import kind_of
from ..io.export import export_volume
from ..io.ome_zarr_write import ZarrWriter, create_ome_zarr, resume_ome_zarr
from ..io.volumes import open_volume
from ..io.zarr_check import find_whole_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..core.geometry import Grid, Vec
    from ..core.volume import VolumeHeader
    from ..engine import Ledger
    from ..io.pyramid import Method
    from .session import Session

__all__ = ["VolumeOutput", "can_be_opened", "volume_output"]

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class VolumeOutput:
    """An output volume in the making."""

    staged: StagedOutput
    dtype: str | None = None
    """Voxel type of an exported file; the store's by default."""

    @property
    def scratch(self) -> Path:
        """Where inputs may be unpacked; removed with the partial folder."""
        return self.staged.partial / "scratch"

    @property
    def store(self) -> Path:
        """The store that tasks write."""
        return self.staged.folder / "volume.zarr"

    def sink(
        self,
        header: VolumeHeader,
        chunks: Vec,
        shards: Vec | None = None,
        pyramid: Method | None = None,
    ) -> ZarrWriter:
        """Return the writer of the store, made anew unless unfinished work is there.

        Raises
        ------
        ConfigError
            There are several classes, and the output's format holds one volume.
        """
        if len(header.class_names) > 1 and kind_of(self.staged.path) != "zarr":
            raise ConfigError(
                f"{self.staged.path}: expected an output ending in .zarr for the classes "
                f"{', '.join(header.class_names)}, found {self.staged.path.suffix}; "
                "or choose one with --class"
            )
        if self.staged.resumed and can_be_opened(self.store):
            return resume_ome_zarr(self.store, header, chunks=chunks, shards=shards)
        self.staged.forget_marks()
        return create_ome_zarr(
            self.store, header, chunks=chunks, shards=shards, overwrite=True, pyramid=pyramid
        )

    def ledger(self, grid: Grid) -> Ledger:
        """Return the marks of the grid's finished blocks: those that can be read now.

        A mark follows its data, so after a crash the disk may lack marked data, and hold data of
        which nobody told. Chunks of other blocks may differ in the last digit and are removed.
        """
        ledger = self.staged.open_ledger(grid)
        if ledger.is_new:
            shutil.rmtree(self.store / "0" / "c", ignore_errors=True)
            return ledger
        n_marked = ledger.n_finished
        if n_lost := ledger.settle(find_whole_blocks(self.store, grid)):
            log.warning(
                "%s: %d of %d finished blocks are damaged or missing on the disk and are made "
                "again", self.staged.path, n_lost, n_marked,
            )  # fmt: skip
        return ledger

    def finish(self) -> None:
        """Give the output its name."""
        target = self.staged.path
        if kind_of(target) == "zarr":
            self.staged.commit(str(self.store.relative_to(self.staged.partial)))
            note_whole(target)
            return
        made = self.staged.partial / f"volume{target.suffix}"
        source = open_volume(self.store, spacing_required=False)
        export_volume(source, made, dtype=self.dtype, overwrite=True)
        self.staged.commit(made.name)


def can_be_opened(store: Path) -> bool:
    """Say whether a store of unfinished work is there and its metadata are whole."""
    try:
        open_volume(store, spacing_required=False)
    except (DeepictError, OSError):
        return False
    return True


@contextmanager
def volume_output(
    session: Session, path: Path, key: str, *, dtype: str | None = None
) -> Iterator[VolumeOutput]:
    """Stage an output volume; it is finished when the block ends without an error.

    Raises
    ------
    ConfigError
        The output's ending names no volume format.
    OutputExistsError
        The output exists and may not be replaced.
    """
    kind = kind_of(path)
    if not kind:
        raise ConfigError(
            f"{path}: expected an output ending in .zarr, .mrc, .rec, .map, .em or .tif, "
            f"found {path.suffix or 'none'}"
        )
    marks = ZARR_MARKS if kind == "zarr" else ()
    with StagedOutput(path, key, overwrite=session.overwrite, marks=marks) as staged:
        output = VolumeOutput(staged, dtype)
        yield output
        output.finish()
