"""Write what a model file holds in another program's format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import ConfigError, OutputExistsError
from ..io.spectrum import write_spectrum
from .equalize import spectrum_of_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["export_model"]


def export_model(model: str, target: Path, *, overwrite: bool = False) -> None:
    """Write a model as DeePiCt's ``.pth``, or its target spectrum as a table.

    Parameters
    ----------
    model
        A model file, or the name of a bundled one.
    target
        Ends in ``.pth`` (3D U-Nets) or ``.tsv`` (models trained on equalized tomograms).
    overwrite
        Replace a file that is there.

    Raises
    ------
    ConfigError
        Another ending, or a model without what is asked for.
    OutputExistsError
        The file is there and may not be replaced.
    ModelFileError
        The model cannot be read, or is no 3D U-Net.
    """
    from ..models.checkpoint import load_checkpoint
    from ..models.deepict_export import save_deepict_checkpoint
    from ..models.registry import resolve_model

    path = resolve_model(model)
    if target.suffix == ".tsv":
        write_spectrum(target, spectrum_of_model(path)[0], overwrite=overwrite)
        return
    if target.suffix != ".pth":
        raise ConfigError(
            f"{target}: expected an output ending in .pth (DeePiCt's checkpoint) or .tsv (the "
            f"spectrum of equalized tomograms), found {target.suffix or 'none'}"
        )
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target}: already exists; choose another name or --overwrite")
    save_deepict_checkpoint(target, load_checkpoint(path))
