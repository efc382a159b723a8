"""What the picks of one tomogram have to do with its region masks.

1. Open the masks, check that they fit the score map, and survey each: is it a mask, is it empty,
   where does the region lie?
2. Tell the labelling which bits of the stacked masks restrict it: intersection, contact.
3. Say what distances are to be measured (`region_search.py`), and name the columns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ConfigError, ShapeMismatchError, SpacingError, VoxelValueError
from ...core.geometry import Grid, as_vec
from ...engine import check_budget, reduce_chunks
from ...io.fitted import FittedReader
from ...io.stacked import MAX_REGIONS, StackedMasks
from ...io.volumes import open_volume
from ...regions import SurveyReduction
from ..session import measure_statistics
from .region_search import Region, Search

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ...config import ContactSettings, PickSettings
    from ...core.volume import VolumeReader
    from ...regions import MaskSurvey
    from ..session import Session

__all__ = ["RegionMasks", "open_regions"]

log = logging.getLogger("deepict_dask")
Array = np.ndarray[Any, Any]
_SPACING_TOLERANCE = 0.01


@dataclass(frozen=True)
class RegionMasks:
    """The regions of one tomogram, in the order of their bits, and what is asked of them."""

    known: tuple[Region, ...]
    settings: PickSettings
    voxel_nm: float | None
    """Edge of a voxel; None where it is not known."""

    @property
    def names(self) -> list[str]:
        """Names in the order of the bits."""
        return [region.name for region in self.known]

    @cached_property
    def contacts(self) -> list[tuple[int, ContactSettings]]:
        """What restricts the picks, each with the number of its region."""
        return [
            (self.names.index(contact.region), contact)
            for contact in self.settings.all_contacts
            if contact.region in self.names
        ]

    @property
    def stack(self) -> list[StackedMasks]:
        """All masks as one source, for labelling; nothing without regions."""
        return [StackedMasks(tuple(region.reader for region in self.known))] if self.known else []

    def of_mode(self, mode: str) -> list[int]:
        """Return the numbers of the regions with a contact of one mode, each once."""
        return sorted({number for number, contact in self.contacts if contact.mode == mode})

    @property
    def intersect(self) -> int:
        """Bits of the regions outside of which there are no voxels."""
        return sum(1 << number for number in self.of_mode("intersection"))

    @property
    def inside(self) -> list[Search]:
        """What intersection looks for where picks are points: voxels of a region."""
        regions = (self.known[number] for number in self.of_mode("intersection"))
        return [Search(region, 0.0, "chessboard") for region in regions]

    @property
    def nearness(self) -> list[Search]:
        """What colocalization looks for; DeePiCt's is no restriction where a region is empty."""
        return [
            self._search_of(self.known[number], contact)
            for number, contact in self.contacts
            if contact.mode == "colocalization"
            and not _keeps_all(self.known[number], contact, self.settings)
        ]

    def _search_of(self, region: Region, contact: ContactSettings) -> Search:
        """Return what one contact looks for."""
        if contact.distance_nm is None:
            return Search(region, float(contact.distance or 0), "chessboard")
        if self.voxel_nm is None:
            raise SpacingError(
                f"{region.reader.path}: contact within {contact.distance_nm:g} nm: the size of a "
                "voxel is not known; give --voxel-spacing-angstrom (in a config: "
                "voxel_spacing_angstrom), or the distance in voxels"
            )
        return Search(region, contact.distance_nm / self.voxel_nm)

    @property
    def measured(self) -> list[Search]:
        """What distances the tables get: to all regions, or to those that are asked for."""
        wanted = self.settings.distances
        limit = self.settings.distance_limit_nm / (self.voxel_nm or 1.0)
        return [Search(r, limit) for r in self.known if wanted is None or r.name in wanted]

    def columns(self, distances: Array) -> dict[str, Array]:
        """Return the columns of what was measured, in nm where the size of a voxel is known."""
        unit = "voxels" if self.voxel_nm is None else "nm"
        return {
            f"distance_{search.region.name}_{unit}": found * (self.voxel_nm or 1.0)
            for search, found in zip(self.measured, distances, strict=True)
        }


def open_regions(
    session: Session,
    score: VolumeReader,
    paths: Mapping[str, Path],
    settings: PickSettings,
    *,
    scratch: Path,
) -> tuple[VolumeReader, RegionMasks]:
    """Open region masks and look at each once.

    Parameters
    ----------
    session
        Workers.
    score
        The score map.
    paths
        Mask files by the names of their regions; non-zero voxels are inside.
    settings
        What contacts and distances are asked for.
    scratch
        Where packed masks are unpacked.

    Returns
    -------
    score
        The score map; in compat mode cut to the shape that it shares with the masks.
    masks
        The regions.

    Raises
    ------
    ShapeMismatchError
        A mask has not the score map's shape.
    VoxelValueError
        A mask has NaN, infinite or negative values.
    ConfigError
        There are more than 64 masks.
    SpacingError
        A contact in nm, and no voxel spacing.
    """
    opened: list[VolumeReader] = [
        open_volume(path, scratch=scratch, spacing_required=False) for path in paths.values()
    ]
    for mask in opened:
        _check_same_spacing(score, mask)
    score, *fitted = _of_one_shape(score, opened, compat=settings.compat is not None)
    if len(fitted) > MAX_REGIONS:
        raise ConfigError(
            f"regions: expected up to {MAX_REGIONS} masks, found {len(fitted)}; "
            "merge some of them, or pick in two runs"
        )
    known = tuple(
        Region(name, mask, _survey(session, mask)) for name, mask in zip(paths, fitted, strict=True)
    )
    spacing = score.header.voxel_spacing_angstrom
    masks = RegionMasks(known, settings, None if spacing is None else spacing / 10)
    _ = masks.nearness  # what cannot be measured is refused now, not after labelling
    _say_what_is_odd(masks, score)
    return score, masks


def _of_one_shape(
    score: VolumeReader, masks: Sequence[VolumeReader], *, compat: bool
) -> list[VolumeReader]:
    """Return score map and masks if they have one shape; in compat mode cut them to one."""
    shape = score.header.shape
    others = [mask for mask in masks if mask.header.shape != shape]
    if not others:
        return [score, *masks]
    found = others[0].header.shape
    if not compat:
        raise ShapeMismatchError(
            f"{others[0].path}: expected a region mask of the score map's shape {shape} (zyx), "
            f"found {found}; give the mask of this tomogram at the same binning"
        )
    common = as_vec(np.min([shape, *(mask.header.shape for mask in masks)], axis=0))
    log.warning(
        "%s: shape %s differs from the score map's %s: all cut to %s",
        others[0].path, found, shape, common,
    )  # fmt: skip
    return [FittedReader(reader, common) for reader in (score, *masks)]


def _survey(session: Session, mask: VolumeReader) -> MaskSurvey:
    """Find where a region lies, and refuse what is no mask."""
    reduction = SurveyReduction(mask.header.dtype)
    grid = Grid(mask.header.shape, session.chunks)
    needed = reduction.bytes_needed(grid.window_shape)
    check_budget("region", needed, session.workers.memory_bytes)
    with session.progress.stage(reduction.name, grid.n_blocks) as advance:
        survey: MaskSurvey = reduce_chunks(
            session.workers, reduction, [mask], grid, on_done=advance
        )
    if not survey.is_finite:
        measure_statistics(session, mask, name="region").require_finite(mask.path)
    if survey.minimum < 0:
        raise VoxelValueError(
            f"{mask.path}: expected a region mask of 0 outside and positive numbers inside, found "
            f"{survey.minimum:g} to {survey.maximum:g}; "
            "bytes may have been stored as signed ones: save the mask again as 0 and 1"
        )
    return survey


def _keeps_all(region: Region, contact: ContactSettings, settings: PickSettings) -> bool:
    """Say whether an empty region is no restriction: DeePiCt's colocalization keeps all then."""
    published = settings.compat is not None and contact.distance is not None
    return published and region.survey.is_empty


def _say_what_is_odd(masks: RegionMasks, score: VolumeReader) -> None:
    """Warn of empty and of missing masks, and of distances that cannot be in nm."""
    for number, region in enumerate(masks.known):
        if region.survey.is_empty:
            asked = [contact for place, contact in masks.contacts if place == number]
            outcome = "it keeps no cluster" if asked else "nothing has a distance to it"
            if asked and all(_keeps_all(region, c, masks.settings) for c in asked):
                outcome = "every cluster is kept, as DeePiCt does"
            log.warning("%s: the region mask is empty: %s", region.reader.path, outcome)
        if region.survey.is_fractional:
            log.warning(
                "%s: has values between 0 and 1, as scores have, and every voxel that is not 0 is "
                "taken as inside; if these are scores, give a mask (segment --threshold, polish)",
                region.reader.path,
            )
    for contact in masks.settings.all_contacts:
        if contact.region not in masks.names:
            log.warning(
                "%s: there is no mask of %s: picks are not restricted by it",
                score.path, contact.region,
            )  # fmt: skip
    if masks.voxel_nm is None and masks.measured:
        log.warning(
            "%s: no voxel spacing is known, so distances to regions are in voxels, up to %g; "
            "give --voxel-spacing-angstrom (in a config: voxel_spacing_angstrom)",
            score.path, masks.settings.distance_limit_nm,
        )  # fmt: skip


def _check_same_spacing(score: VolumeReader, mask: VolumeReader) -> None:
    """Warn where a mask of the same shape claims voxels of another size."""
    ours, theirs = score.header.voxel_spacing_angstrom, mask.header.voxel_spacing_angstrom
    if ours and theirs and abs(ours / theirs - 1) > _SPACING_TOLERANCE:
        log.warning(
            "%s: has voxels of %.4g Å, the score map of %.4g Å: is it the mask of this tomogram?",
            mask.path, theirs, ours,
        )  # fmt: skip
