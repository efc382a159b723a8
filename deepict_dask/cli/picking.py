"""Commands on score maps and particle lists: pick, picks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .messages import plan
from .options import (
    ChunksOption,
    ClusterOption,
    DeviceOption,
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    open_session,
    say,
    three,
)
from .pick_options import (
    ArgmaxOption,
    BandwidthOption,
    BorderOption,
    ClassMinSizeOption,
    ClassNameOption,
    ClassNamesOption,
    ClassThresholdOption,
    CompatOption,
    ConnectivityOption,
    ContactDistanceOption,
    ContactModeOption,
    ContactOption,
    DiameterOption,
    DistanceLimitNmOption,
    FolderArgument,
    LabelMapOption,
    LabelValueOption,
    MaxSizeOption,
    MethodOption,
    MinSizeOption,
    ModelOption,
    RegionMaskOption,
    RegionOption,
    ScoreArgument,
    ThresholdOption,
    TomogramNameOption,
    VolumeFormatOption,
)

if TYPE_CHECKING:
    import typer

    from ..config import PickSettings
    from ..jobs.picking.outputs import PickReport
    from ..jobs.session import Session


def pick(
    score: ScoreArgument,
    folder: FolderArgument,
    threshold: ThresholdOption = None,
    label_value: LabelValueOption = None,
    min_size: MinSizeOption = 1,
    max_size: MaxSizeOption = None,
    connectivity: ConnectivityOption = 26,
    border: BorderOption = "0",
    region_mask: RegionMaskOption = None,
    contact_mode: ContactModeOption = None,
    contact_distance: ContactDistanceOption = 10,
    region: RegionOption = None,
    contact: ContactOption = None,
    distance_limit_nm: DistanceLimitNmOption = 100.0,
    class_name: ClassNameOption = None,
    method: MethodOption = "components",
    bandwidth: BandwidthOption = None,
    diameter: DiameterOption = None,
    class_min_size: ClassMinSizeOption = None,
    class_threshold: ClassThresholdOption = None,
    argmax: ArgmaxOption = False,
    class_names: ClassNamesOption = None,
    model: ModelOption = None,
    label_map: LabelMapOption = False,
    tomogram_name: TomogramNameOption = None,
    volume_format: VolumeFormatOption = "zarr",
    compat: CompatOption = None,
    device: DeviceOption = "auto",
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Turn a score map into a segmentation, clusters and particle lists.

    Mean-shift and mp-nms find the middles of blobs, and make lists only.

    Example: deepict-dask pick scores.zarr picks --threshold 0.5 --min-size 100
    --region er=er.mrc --contact er:colocalization:25nm
    """
    from ..config import PickSettings, settings_from
    from ..io.datasets.names import short_name

    by_default = threshold is None and method == "components" and label_value is None
    regions = _region_files(region_mask, region or [])
    values: dict[str, Any] = {
        "class": class_name, "threshold": 0.5 if threshold is None else threshold,
        "label_value": label_value, "min_size": min_size, "max_size": max_size,
        "connectivity": connectivity, "border": three(border, "--border"),
        "region": region_mask and "region", "contact_mode": contact_mode or "intersection",
        "contact_distance": contact_distance,
        "contacts": [_contact(text, regions) for text in contact or []],
        "distance_limit_nm": distance_limit_nm, "label_map": label_map, "format": volume_format,
        "compat": compat, "method": method, "bandwidth": bandwidth, "diameters": diameter or (),
        "min_sizes": _sizes(class_min_size or []),
        "thresholds": _thresholds(class_threshold or []), "argmax": argmax,
        "class_names": () if class_names is None else class_names.split(","),
    }  # fmt: skip
    settings = settings_from(PickSettings, values, "pick")
    _refuse_idle_contact(settings, contact_mode, region_mask)
    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
        device=device if method == "mp-nms" or device == "cuda" else "cpu",
    ) as session:  # fmt: skip
        plan(f"{source_in_words(score, model)} by {method}, to {folder}", shown=progress)
        name = tomogram_name or short_name(score)
        report = _picked(session, score, folder, settings, regions, model, name)
    if by_default and report.n_picks:  # where there are none, the reason names the threshold
        say("threshold 0.5, as no --threshold is given; what a model recommends: deepict-dask "
            "models show MODEL")  # fmt: skip
    say(f"{report.n_picks} picks in {folder}")


def _refuse_idle_contact(
    settings: PickSettings, contact_mode: str | None, region_mask: Path | None
) -> None:
    """Refuse how clusters have to do with a region where there is none, or none so."""
    if contact_mode is not None and region_mask is None:
        raise ConfigError(
            "--contact-mode: expected a --region-mask with it, found none; with --region, give "
            "--contact NAME:MODE"
        )
    if settings.idle_distance:
        raise ConfigError(
            "--contact-distance: expected --region-mask and --contact-mode colocalization with it, "
            "found others; with --region, give --contact NAME:colocalization:VOXELS"
        )


def source_in_words(score: Path, model: str | None) -> str:
    """Return what is picked from.

    Examples
    --------
    >>> source_in_words(Path("scores.zarr"), None)
    'picks of scores.zarr'
    """
    return f"picks of {score}" + ("" if model is None else f" through {model}")


def _picked(
    session: Session, source: Path, folder: Path, settings: PickSettings,
    regions: dict[str, Path], model: str | None, tomogram_name: str,
) -> PickReport:  # fmt: skip
    """Pick from a score map; or, with a model, from a tomogram whose tiles it searches."""
    from ..config import SegmentSettings, settings_from
    from ..jobs.picking.pick import pick_particles
    from ..jobs.picking.tiles import pick_tiles

    if model is None:
        return pick_particles(
            session, source, folder, settings, regions=regions, tomogram_name=tomogram_name
        )
    if regions:
        raise ConfigError(
            "--region: expected none where tiles of a network are searched (--model), found "
            f"{', '.join(regions)}; segment first, then pick from the score map"
        )
    wanted = {
        "model": model, "compat": "deepetpicker", "class_names": settings.class_names or None,
    }  # fmt: skip
    network = settings_from(SegmentSettings, wanted, "pick")
    unnamed = settings.model_copy(update={"class_names": ()})
    return pick_tiles(session, source, folder, network, unnamed, tomogram_name=tomogram_name)


def _sizes(texts: list[str]) -> dict[str, int]:
    """Return smallest sizes by class from "CLASS=N".

    Examples
    --------
    >>> _sizes(["1=50", "ribosome=100"])
    {'1': 50, 'ribosome': 100}
    """
    sizes = {}
    for text in texts:
        name, _, size = text.rpartition("=")
        if not (name and size.isascii() and size.isdigit()):
            raise ConfigError(f"--class-min-size: expected CLASS=N, found {text!r}")
        sizes[name] = int(size)
    return sizes


def _thresholds(texts: list[str]) -> dict[str, float]:
    """Return thresholds by class from "CLASS=T".

    Examples
    --------
    >>> _thresholds(["ribosome=0.4"])
    {'ribosome': 0.4}
    """
    thresholds = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not (name and re.fullmatch(r"\d*\.?\d+", value, re.ASCII)):
            raise ConfigError(f"--class-threshold: expected CLASS=T, found {text!r}")
        thresholds[name] = float(value)
    return thresholds


def _region_files(region_mask: Path | None, regions: list[str]) -> dict[str, Path]:
    """Return mask files by the names of their regions; the one of --region-mask is ``region``.

    Examples
    --------
    >>> _region_files(None, ["cytosol=c.mrc"])
    {'cytosol': PosixPath('c.mrc')}
    """
    files = {} if region_mask is None else {"region": region_mask}
    for text in regions:
        name, _, path = text.partition("=")
        if not (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and path):
            raise ConfigError(
                "--region: expected NAME=FILE, with a name of letters, digits, _, - and ., "
                f"found {text!r}"
            )
        if name in files:
            other = " (the name of --region-mask)" if files[name] == region_mask else ""
            raise ConfigError(
                f"--region: expected one mask of each name, found two of {name!r}{other}; "
                "give one of them another name"
            )
        files[name] = Path(path)
    return files


def _contact(text: str, known: dict[str, Path]) -> dict[str, Any]:
    """Return the settings of a contact from "NAME:MODE" or "NAME:MODE:DISTANCE".

    Examples
    --------
    >>> _contact("er:colocalization:25nm", {"er": Path("er.mrc")})
    {'region': 'er', 'mode': 'colocalization', 'distance_nm': 25.0}
    """
    name, *rest = text.split(":")
    if not 1 <= len(rest) <= 2 or rest[0] not in ("intersection", "contact", "colocalization"):
        raise ConfigError(
            "--contact: expected NAME:MODE or NAME:MODE:DISTANCE with a mode of intersection, "
            f"contact and colocalization, found {text!r}"
        )
    if name not in known:
        raise ConfigError(
            f"--contact: expected a region that is given ({', '.join(known) or 'none is'}), "
            f"found {name!r}; give its mask with --region {name}=FILE"
        )
    contact = {"region": name, "mode": rest[0]}
    return contact | (_distance(rest[1], text) if len(rest) == 2 else {})


def _distance(text: str, contact: str) -> dict[str, float]:
    """Return a distance in voxels, or in nm where the text says so."""
    if text.isascii() and text.isdigit():
        return {"distance": int(text)}
    if re.fullmatch(r"\d+(\.\d*)?nm", text, re.ASCII):
        return {"distance_nm": float(text.removesuffix("nm"))}
    raise ConfigError(
        f"--contact {contact}: expected a distance such as 25nm, or 10 for voxels, found {text!r}"
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(pick)
