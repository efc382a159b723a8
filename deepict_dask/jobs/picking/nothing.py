"""Why were there no picks, or nothing but one? With the numbers that help to choose settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...config import PickSettings
    from ...core.statistics import VolumeStatistics
    from ...core.tables import ClusterRows
    from ...core.volume import VolumeHeader

__all__ = ["reason_for_nothing", "warn_of_everything", "warn_of_nothing"]

log = logging.getLogger("deepict_dask")

_NOTHING_LEFT = {
    "mean-shift": "no object is within the limits; change --min-size, --class-min-size, "
    "--max-size or --threshold",
    "mp-nms": "no blob fills a tenth of what is averaged over; change --diameter or --threshold",
}
"""Of methods that had voxels to work on."""


def warn_of_nothing(
    path: str, found: VolumeStatistics, settings: PickSettings, *, n_clusters: int
) -> None:
    """Warn that nothing was picked and say why.

    Parameters
    ----------
    path
        Where the scores come from.
    found
        Their range.
    settings
        What the clusters had to pass.
    n_clusters
        Clusters that were found before sizes and regions were looked at.
    """
    log.warning("%s: %s", path, reason_for_nothing(found, settings, n_clusters))


def warn_of_everything(path: str, header: VolumeHeader, rows: ClusterRows) -> None:
    """Warn where the one cluster is the whole volume: a constant map, or one of other numbers."""
    if len(rows) == 1 and rows["n_voxels"][0] == header.n_voxels:
        log.warning(
            "%s: every voxel is above the threshold, so the one cluster is the whole volume; "
            "is this a score map, and --threshold in its range?", path,
        )  # fmt: skip


def reason_for_nothing(found: VolumeStatistics, settings: PickSettings, n_clusters: int) -> str:
    """Return why there are no picks and what to change.

    Examples
    --------
    >>> from deepict_dask.config import PickSettings
    >>> from deepict_dask.core.statistics import VolumeStatistics
    >>> found = VolumeStatistics(1000, 0.01, 0.0, 0.0, 0.3)
    >>> reason_for_nothing(found, PickSettings(threshold=0.5), n_clusters=0)
    'no picks: scores go from 0 to 0.3 (mean 0.01), none is above the threshold 0.5; lower \
--threshold (in a config threshold under pick, with train --rounds under rounds.picks.CLASS), or \
check that the model fits the tomogram'
    """
    span = f"scores go from {found.minimum:.4g} to {found.maximum:.4g} (mean {found.mean:.4g})"
    if n_clusters > 0:
        limits = f"{settings.min_size} or more"
        if settings.max_size is not None:
            limits = f"{settings.min_size} to {settings.max_size}"
        wanted = f"none has {limits} voxels"
        if settings.all_contacts:
            wanted = f"none has both {limits} voxels and the contact that was asked for"
        region = " or the region" if settings.all_contacts else ""
        return (
            f"no picks: {n_clusters} clusters were found, but {wanted}; {span}; change "
            f"--min-size, --max-size, --threshold{region}"
        )
    label = settings.label_value
    least = settings.threshold if label is None else label - 0.5
    if settings.method != "components" and found.maximum > least:
        return f"no picks: {span}, but {_NOTHING_LEFT[settings.method]}"
    if settings.label_value is not None:
        return (
            f"no picks: values go from {found.minimum:.4g} to {found.maximum:.4g}, none that is "
            f"looked at equals {settings.label_value}; change --label-value"
        )
    if found.maximum > settings.threshold:
        return (
            f"no picks: {span}, but voxels above the threshold {settings.threshold:g} lie outside "
            "the region mask or in the border; check --region-mask and --border"
        )
    return (
        f"no picks: {span}, none is above the threshold {settings.threshold:g}; lower --threshold "
        "(in a config threshold under pick, with train --rounds under rounds.picks.CLASS), or "
        "check that the model fits the tomogram"
    )
