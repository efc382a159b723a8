"""Settings of the stages: strict, frozen, units in the names, every default written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

__all__ = [
    "ContactSettings",
    "EqualizeSettings",
    "PickSettings",
    "RegionSettings",
    "SegmentSettings",
    "SliceTiling",
    "Strict",
]

ContactMode = Literal["intersection", "contact", "colocalization"]
Precision = Literal["float32", "bfloat16", "float16"]
Border = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]


class Strict(BaseModel):
    """Base of all settings: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class EqualizeSettings(Strict):
    """Amplitude matching: make tomograms alike before the network sees them.

    Examples
    --------
    >>> EqualizeSettings(target="target.tsv").compat is None
    True
    """

    target: Path
    """Spectrum to match (.tsv), or a model trained on equalized tomograms (.safetensors), whose
    card holds spectrum, cut-off and mode."""
    cutoff: NonNegativeFloat | None = None
    """Low-pass cut-off: 1/Å, or spectrum bins with ``compat: deepict``."""
    smoothing: NonNegativeFloat = 0.0
    """Width of the cut-off, in the unit of ``cutoff``."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published filter exactly."""


class SliceTiling(Strict):
    """How DeePiCt cuts the slices of a tomogram for its 2D network (``compat: deepict`` only).

    Examples
    --------
    >>> SliceTiling().tile, SliceTiling().tiles
    ((288, 288), (5, 5))
    """

    tile: tuple[PositiveInt, PositiveInt] = (288, 288)
    """Height and width of a tile in voxels, y and x."""
    tiles: tuple[PositiveInt, PositiveInt] = (5, 5)
    """Rows and columns of tiles, spread evenly over a slice whatever its size."""
    crop: NonNegativeInt = 48
    """Voxels cut off every side of a predicted tile; slices are first extended by as many."""
    z_cutoff: NonNegativeInt = 200
    """Central slices to predict, 0 for all; the others are given 0."""
    normalize: bool = True
    """Subtract the mean and divide by the standard deviation of the slices that are predicted."""
    compensate_crop: bool = True
    """Give the score map the slices that ``z_cutoff`` left out, as zeros."""


class RegionSettings(Strict):
    """A region mask (lamella, cytosol, organelle) from a file, a column of the table, or a model.

    Examples
    --------
    >>> RegionSettings(name="cytosol", model="cytosol.h5", z_sigma=5).threshold
    0.5
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name in other sections, and in the columns ``distance_<name>_nm`` and ``n_in_<name>``."""
    path: Path | None = None
    """One mask file for every tomogram."""
    column: str | None = None
    """Column of the dataset table with each tomogram's mask file; an empty cell means no mask."""
    model: str | None = None
    """A model file, or the name of a bundled model: 2D as a rule, 3D as well."""
    class_name: Annotated[str | None, Field(alias="class")] = None
    """Class of the model; may be left out where it has one."""
    threshold: float = 0.5
    """With a model: voxels with a (smoothed) score above this are inside."""
    z_sigma: NonNegativeFloat = 0.0
    """With a model: standard deviation, in voxels, of a Gaussian along z over the scores."""
    compat: Literal["deepict"] | None = None
    """With a model: reproduce the published tiling."""
    tiling: SliceTiling | None = None
    """Of a 2D model with ``compat: deepict``."""
    precision: Precision = "float32"
    """With a 3D model: of weights and features while predicting; scores are float32."""
    average_flips: bool = False
    """With a 3D model: as of a segment section."""

    @model_validator(mode="after")
    def _one_source(self) -> RegionSettings:
        sources = {"path": self.path, "column": self.column, "model": self.model}
        found = [name for name, value in sources.items() if value is not None]
        if len(found) != 1:
            raise ValueError(
                f"region {self.name!r}: expected one of path, column and model, "
                f"found {' and '.join(found) or 'none'}"
            )
        of_models = (
            "class_name", "threshold", "z_sigma", "compat", "tiling", "precision", "average_flips"
        )  # fmt: skip
        idle = _changed(self, of_models)
        if self.model is None and idle:
            raise ValueError(
                f"region {self.name!r}: {', '.join(idle)}: only for a region that a model makes"
            )
        _check_tiling(self.tiling, self.compat)
        _check_plain(self.precision, self.compat, average_flips=self.average_flips)
        return self


class SegmentSettings(Strict):
    """One model over the tomogram.

    Examples
    --------
    >>> SegmentSettings(model="ribosome.pth").classes is None
    True
    """

    model: str
    """A model file, or the name of a bundled model; the file says whether it is 2D or 3D."""
    classes: tuple[str, ...] | None = None
    """Which of the model's classes to keep; all by default."""
    class_names: tuple[str, ...] | None = None
    """Names of all the model's classes, where its file numbers them (``background`` first)."""
    argmax: bool = False
    """Of a DeepFinder or DeepETPicker model: write for each voxel the class with the highest score
    (0 background), instead of the scores."""
    compat: Literal["deepict", "deepfinder", "deepetpicker"] | None = None
    """Reproduce the published tiling, with its seams and its uncovered border; of a DeepFinder
    model its averages of overlapping patches. A DeepETPicker model always has its own tiles."""
    box_size: PositiveInt | None = None
    """Edge of a box of a 3D model with ``compat``: 64 by default, of DeepFinder 192; else windows
    are derived."""
    overlap: PositiveInt = 12
    """Voxels of a box, on each side, that are context only; with ``compat: deepict``."""
    tiling: SliceTiling | None = None
    """Of a 2D model with ``compat: deepict``."""
    precision: Precision = "float32"
    """Of a 3D model's weights and features while predicting; scores are float32."""
    average_flips: bool = False
    """Of a 3D model: the mean of the scores of the tomogram and of its seven mirror images, turned
    back (test-time augmentation): eight times the work, fewer false picks of a network that was
    trained on little. Of a DeepETPicker model each tile is mirrored."""

    @model_validator(mode="after")
    def _tiling_is_compat(self) -> SegmentSettings:
        _check_tiling(self.tiling, self.compat)
        _check_plain(self.precision, self.compat, average_flips=self.average_flips)
        if self.compat is None and _changed(self, ("box_size", "overlap")):
            raise ValueError(
                "box_size, overlap: only with compat deepict; without it windows are derived"
            )
        if self.compat not in (None, "deepict") and _changed(self, ("overlap", "tiling")):
            raise ValueError(f"overlap, tiling: only with compat deepict, found {self.compat}")
        if self.argmax and self.classes is not None:
            raise ValueError("argmax: expected all classes, from which one wins, found classes")
        return self


def _changed(settings: Strict, names: tuple[str, ...]) -> list[str]:
    """Return the settings of these names that are not at their default, as a config names them."""
    fields = type(settings).model_fields
    return [
        fields[name].alias or name
        for name in names
        if getattr(settings, name) != fields[name].default
    ]


def _check_tiling(tiling: SliceTiling | None, compat: str | None) -> None:
    """Refuse tiles where windows are derived."""
    if tiling is not None and compat is None:
        raise ValueError(
            "tiling (tile, tiles, crop, z_cutoff): only with compat deepict; without it windows "
            "are derived from the network and every slice is predicted"
        )


def _check_plain(precision: Precision, compat: str | None, *, average_flips: bool) -> None:
    """Refuse other scores where the published program's are asked for."""
    if compat is not None and average_flips:
        raise ValueError(
            f"average_flips: not with compat {compat}, which reproduces published results"
        )
    if compat is not None and precision != "float32":
        raise ValueError(
            f"precision: expected float32 with compat {compat}, which reproduces published "
            f"results, found {precision}"
        )


class ContactSettings(Strict):
    """What a cluster has to do with one region to be kept.

    Examples
    --------
    >>> ContactSettings(region="mitochondrion", mode="colocalization", distance_nm=25).mode
    'colocalization'
    """

    region: str
    """Name of a region of the config."""
    mode: ContactMode = "intersection"
    """Voxels outside are dropped, or a cluster must touch the region, or lie close to it."""
    distance: NonNegativeInt | None = None
    """For colocalization: largest chessboard distance of the centroid to the region, in voxels."""
    distance_nm: NonNegativeFloat | None = None
    """For colocalization, instead: largest Euclidean distance in nm."""

    @model_validator(mode="after")
    def _distance_fits(self) -> ContactSettings:
        given = [d for d in (self.distance, self.distance_nm) if d is not None]
        if (self.mode == "colocalization") != (len(given) == 1):
            raise ValueError(
                f"contact with {self.region!r}: expected either distance (voxels) or distance_nm "
                f"with colocalization and neither with other modes, found {len(given)} of them "
                f"with {self.mode}"
            )
        return self


_OF_CLUSTERS = ("border", "label_map", "connectivity")
_OF_METHODS: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "components": (
        None, "deepict", ("bandwidth", "diameters", "min_sizes", "thresholds", "argmax"),
    ),
    "mean-shift": ("bandwidth", "deepfinder", ("diameters", *_OF_CLUSTERS)),
    "mp-nms": (
        "diameters",
        "deepetpicker",
        ("bandwidth", "min_sizes", "min_size", "max_size", "argmax", *_OF_CLUSTERS),
    ),
}  # fmt: skip
"""Of each method: what it needs, whose program it can reproduce, which settings it lacks."""


class PickSettings(Strict):
    """Score map to segmentation, clusters and picks.

    Examples
    --------
    >>> PickSettings(threshold=0.6).connectivity
    26
    """

    class_name: Annotated[str | None, Field(alias="class")] = None
    """Class of a multi-class score map; may be left out where there is one class."""
    threshold: float = 0.5
    """Voxels with a score above this are chosen."""
    thresholds: dict[str, float] = {}
    """For mean shift and mp-nms: threshold by class, where it is not ``threshold``."""
    argmax: bool = False
    """For mean shift, instead of a threshold: a voxel has the class with the highest score, which
    may be ``background``."""
    label_value: int | None = None
    """Instead of a threshold: voxels of a label volume that equal this."""
    class_names: tuple[str, ...] = ()
    """Names of a label volume's numbers, from 0, which is background."""
    min_size: NonNegativeInt = 1
    """Smallest cluster in voxels, inclusive (exclusive with ``compat: deepict``)."""
    max_size: PositiveInt | None = None
    """Largest cluster in voxels, inclusive."""
    connectivity: Literal[6, 18, 26] = 26
    """Neighbours of a voxel: faces, and edges, and corners."""
    border: Border = (0, 0, 0)
    """Voxels to leave out at both ends of the axes z, y, x."""
    region: str | None = None
    """Name of a region of the config (a path on the command line)."""
    contact_mode: ContactMode = "intersection"
    """What a cluster has to do with the region to be kept."""
    contact_distance: NonNegativeInt = 10
    """For colocalization: largest chessboard distance of the centroid to the region, in voxels."""
    contacts: tuple[ContactSettings, ...] = ()
    """Further regions that a cluster has to do with; all of them must agree."""
    distances: tuple[str, ...] | None = None
    """Regions to which each pick's distance is measured; all that are known by default."""
    distance_limit_nm: PositiveFloat = 100.0
    """Distances to regions are exact up to this and empty beyond."""
    label_map: bool = False
    """Also write the label map (0 background, 1..n clusters in raster order)."""
    format: Literal["zarr", "mrc"] = "zarr"
    """Format of the segmentation and the label map."""
    method: Literal["components", "mean-shift", "mp-nms"] = "components"
    """Connected components; mean shift (DeepFinder's); mean-pooling non-maximum suppression
    (DeepETPicker's)."""
    bandwidth: Annotated[float, Field(ge=1)] | None = None
    """For mean shift: radius in voxels, about that of a particle."""
    diameters: tuple[PositiveFloat, ...] = ()
    """For mp-nms: the particles' diameter in voxels, or one for each class."""
    min_sizes: dict[str, NonNegativeInt] = {}
    """For mean shift: smallest size by class, where it is not ``min_size``."""
    compat: Literal["deepict", "deepfinder", "deepetpicker"] | None = None
    """Reproduce the published post-processing: components, mean shift, mp-nms."""
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = None
    """Name of the folder ``picks_<name>`` of a run; the class by default."""

    @model_validator(mode="after")
    def _limits(self) -> PickSettings:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(
                f"max_size: expected at least min_size, which is {self.min_size}, "
                f"found {self.max_size}"
            )
        return self

    @model_validator(mode="after")
    def _fits_method(self) -> PickSettings:
        needed, compat, idle = _OF_METHODS[self.method]
        if needed is not None and not getattr(self, needed):
            raise ValueError(f"{needed}: expected a value with method {self.method}, found none")
        changed = _changed(self, idle)
        if changed:
            raise ValueError(f"{', '.join(changed)}: not with method {self.method}")
        touching = [c.region for c in self.all_contacts if c.mode == "contact"]
        if touching and self.method != "components":
            raise ValueError(
                f"contact with {touching[0]!r}: expected intersection or colocalization with "
                f"method {self.method}, whose picks are points, found contact"
            )
        if self.argmax and (self.thresholds or self.label_value is not None):
            raise ValueError("argmax: expected no thresholds and no label_value with it")
        if self.compat not in (None, compat):
            raise ValueError(
                f"compat: expected {compat} with method {self.method}, found {self.compat}"
            )
        return self

    @property
    def idle_distance(self) -> bool:
        """Whether ``contact_distance`` was changed where nothing asks for it."""
        asked = self.region is not None and self.contact_mode == "colocalization"
        return bool(_changed(self, ("contact_distance",))) and not asked

    @property
    def all_contacts(self) -> tuple[ContactSettings, ...]:
        """All that a cluster has to do with regions, `region` first."""
        if self.region is None:
            return self.contacts
        near = self.contact_distance if self.contact_mode == "colocalization" else None
        first = ContactSettings(region=self.region, mode=self.contact_mode, distance=near)
        return (first, *self.contacts)
