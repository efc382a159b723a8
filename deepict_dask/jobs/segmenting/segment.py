"""A tomogram and a model to a score map, whatever the model and the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from .chosen_model import check_3d_options, check_argmax, kind_of_model
from .slices import segment_slices_volume
from .tiles import segment_tiles
from .windows import segment_compat, segment_together

if TYPE_CHECKING:
    from pathlib import Path

    from ...config import SegmentSettings
    from ..session import Session

__all__ = ["segment_volume"]


def segment_volume(
    session: Session,
    source: Path,
    target: Path,
    settings: SegmentSettings,
    *,
    region: Path | None = None,
    z_sigma: float = 0.0,
    threshold: float | None = None,
) -> Path:
    """Predict a score map with any network, exact to 1e-5 whatever the windows.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    target
        Score map: float32, zyx for one class, czyx for several; with ``argmax`` a label volume.
    settings
        Model and classes.
    region
        With ``compat: deepict`` and a 3D network: patches that do not touch this mask are not
        predicted.
    z_sigma
        Of a 2D network: smooth the scores along z by a Gaussian of this many voxels.
    threshold
        Of a 2D network: write a mask, uint8, of (smoothed) scores above this.

    Raises
    ------
    ConfigError
        An option of 2D networks with a 3D one, or the other way round.
    ModelFileError
        The file is no model, or lacks a class.
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    BudgetError
        No window fits a worker.
    """
    kind = kind_of_model(settings.model)
    _refuse_misplaced(settings, kind, region)
    if kind == "unet2d":
        segment_slices_volume(
            session, source, target, settings, z_sigma=z_sigma, threshold=threshold
        )
        return target
    _refuse_slice_options(settings, z_sigma, threshold)
    if kind != "unet3d":
        segment_tiles(session, source, target, settings)
    elif settings.compat is not None:
        segment_compat(session, source, target, settings, region)
    else:
        segment_together(session, source, {target: settings})
    return target


def _refuse_misplaced(settings: SegmentSettings, kind: str, region: Path | None) -> None:
    """Refuse what this kind of network cannot be asked for; only one way takes a region mask."""
    check_3d_options(settings)
    check_argmax(settings)
    if kind == "unet3d" and settings.compat not in (None, "deepict"):
        raise ConfigError(
            f"{settings.model}: compat: expected deepict for this model, found {settings.compat}"
        )
    if region is None or (kind == "unet3d" and settings.compat is not None):
        return
    wrong = {
        "unet2d": f"{settings.model}: expected a 3D network with --region-mask, found a 2D one",
        "unet3d": "segment: expected --region-mask together with --compat deepict only, "
        "found it alone",
    }.get(kind, f"{settings.model}: expected a model of DeePiCt with --region-mask, found another")
    raise ConfigError(f"{wrong}; restrict the picks instead: deepict-dask pick --region-mask")


def _refuse_slice_options(
    settings: SegmentSettings, z_sigma: float, threshold: float | None
) -> None:
    """Refuse what only a 2D network can be asked for."""
    if z_sigma or threshold is not None or settings.tiling is not None:
        raise ConfigError(
            f"{settings.model}: expected a 2D network with --z-sigma, --threshold, --tile, --tiles,"
            " --crop or --z-cutoff, found a 3D one; smooth its scores with `deepict-dask polish`, "
            "take a threshold with `deepict-dask pick`"
        )
