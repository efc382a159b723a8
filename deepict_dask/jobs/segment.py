"""A tomogram and a model to a score map, whatever the model and the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from .chosen_model import check_precision, is_2d, is_unet3d
from .segment_slices import segment_slices_volume
from .segment_tiles import segment_tiles
from .segment_windows import segment_compat, segment_together

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import SegmentSettings
    from .session import Session

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
        Score map: float32, zyx for one class, czyx for several.
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
    check_precision(settings)
    if is_2d(settings.model):
        if region is not None:
            raise ConfigError(
                f"{settings.model}: expected a 3D network with --region-mask, found a 2D one; "
                "restrict the picks instead: deepict-dask pick --region-mask"
            )
        segment_slices_volume(
            session, source, target, settings, z_sigma=z_sigma, threshold=threshold
        )
        return target
    _refuse_slice_options(settings, z_sigma, threshold)
    if not is_unet3d(settings.model):
        if region is not None:
            raise ConfigError(
                f"{settings.model}: expected a model of DeePiCt with --region-mask, found another; "
                "restrict the picks instead: deepict-dask pick --region-mask"
            )
        segment_tiles(session, source, target, settings)
    elif settings.compat is not None:
        if settings.compat != "deepict":
            raise ConfigError(
                f"{settings.model}: compat: expected deepict for this model, "
                f"found {settings.compat}"
            )
        segment_compat(session, source, target, settings, region)
    elif region is not None:
        raise ConfigError(
            "segment: expected --region-mask together with --compat deepict only, found it alone; "
            "restrict the picks instead: deepict-dask pick --region-mask"
        )
    else:
        segment_together(session, source, {target: settings})
    return target


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
