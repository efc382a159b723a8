"""The pipeline in a notebook: functions on lazy `xarray.DataArray`.

A tomogram is a DataArray with dims ``z, y, x``, coordinates in Å and ``voxel_spacing_angstrom`` in
its attributes. Every function returns at once; work is done when ``.compute()`` or a plot asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.errors import ConfigError, ShapeMismatchError, SpacingError
from .core.geometry import Grid, Vec, as_vec
from .engine import lazy
from .equalization import EqualizeOp
from .io.spectrum import read_physical_spectrum
from .io.volumes import open_volume
from .labelling import LabelReduction, RelabelOp, SelectSettings
from .labelling.measure import score_unit
from .labelling.merge import KeepRule, LabelNode
from .labelling.op import sorted_rows
from .particles import cluster_table, picks_table

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import xarray as xr

    from .core.geometry import Block
    from .labelling.merge import Renames
    from .models.checkpoint import LoadedModel

__all__ = ["equalize", "label", "open_tomogram", "pick", "segment"]

DIMS = ("z", "y", "x")


def open_tomogram(
    path: str | os.PathLike[str],
    *,
    chunks: Vec = (128, 128, 128),
    voxel_spacing_angstrom: float | None = None,
    class_name: str | None = None,
) -> xr.DataArray:
    """Open a volume lazily.

    Parameters
    ----------
    path
        MRC, OME-Zarr, EM or TIFF volume.
    chunks
        Voxels of a chunk on z, y, x.
    voxel_spacing_angstrom
        Overrides what the file says.
    class_name
        One class of a multi-class score map.

    Returns
    -------
    xarray.DataArray
        dims ``z, y, x``, coordinates in Å, lazy.

    Raises
    ------
    VolumeFormatError, SpacingError
        The file is no volume; its voxel spacing is missing or differs per axis.

    Examples
    --------
    >>> import tempfile, mrcfile
    >>> path = tempfile.mkdtemp() + "/tomo.mrc"
    >>> with mrcfile.new(path) as mrc:
    ...     mrc.set_data(np.zeros((4, 6, 8), "float32"))
    ...     mrc.voxel_size = 13.48
    >>> tomogram = open_tomogram(path)
    >>> tomogram.sizes, round(float(tomogram.x[1]), 2)
    (Frozen({'z': 4, 'y': 6, 'x': 8}), 13.48)
    """
    reader = open_volume(path, voxel_spacing_angstrom=voxel_spacing_angstrom, class_name=class_name)
    header = reader.header
    assert header.voxel_spacing_angstrom is not None  # open_volume refuses unknown spacing
    fitted = as_vec([min(c, n) for c, n in zip(chunks, header.shape, strict=True)])
    data = lazy.lazy_reader(reader, fitted)
    volume = _array(data, header.voxel_spacing_angstrom, header.origin_angstrom)
    return volume.rename(class_name or "tomogram")


def _array(data: Any, spacing: float, origin: Sequence[float]) -> xr.DataArray:
    """Wrap a zyx array with its coordinates in Å."""
    import xarray as xr

    coords = {
        dim: (dim, start + spacing * np.arange(n), {"units": "Å"})
        for dim, start, n in zip(DIMS, origin, data.shape, strict=True)
    }
    return xr.DataArray(data, coords, DIMS, attrs={"voxel_spacing_angstrom": spacing})


def _like(data: Any, volume: xr.DataArray, name: str) -> xr.DataArray:
    """Wrap a result with the coordinates of its source."""
    return volume.copy(data=data).rename(name)


def _spacing(volume: xr.DataArray) -> float:
    spacing = volume.attrs.get("voxel_spacing_angstrom")
    if spacing is None:
        raise SpacingError(
            "volume: expected the attribute voxel_spacing_angstrom, found none; set it: "
            "volume.attrs['voxel_spacing_angstrom'] = 13.48"
        )
    return float(spacing)


def _chunked(volume: xr.DataArray) -> Any:
    """Return the zyx dask array of a volume."""
    if tuple(volume.dims) != DIMS:
        raise ShapeMismatchError(f"volume: expected dims z, y, x, found {tuple(volume.dims)}")
    return volume.chunk().data if volume.chunks is None else volume.data


def equalize(
    tomogram: xr.DataArray,
    target: str | os.PathLike[str],
    *,
    cutoff: float = 0.0,
    smoothing: float = 0.0,
) -> xr.DataArray:
    """Give a tomogram the amplitude spectrum of a table.

    Parameters
    ----------
    tomogram
        dims ``z, y, x``.
    target
        Spectrum (.tsv) as ``deepict-dask spectrum`` writes it.
    cutoff, smoothing
        Low-pass and its width in 1/Å; 0 for none.

    Returns
    -------
    xarray.DataArray
        float32, lazy; one task holds the whole volume.

    Examples
    --------
    See docs/python.md.
    """
    op = EqualizeOp(
        read_physical_spectrum(target),
        voxel_spacing_angstrom=_spacing(tomogram),
        cutoff=cutoff,
        smoothing=smoothing,
    )
    data = _chunked(tomogram)
    return _like(lazy.lazy_whole(op.transform, data.astype("float32")), tomogram, "equalized")


def segment(
    tomogram: xr.DataArray,
    model: str | os.PathLike[str],
    *,
    class_name: str | None = None,
    argmax: bool = False,
) -> xr.DataArray:
    """Predict a score map, or the labels of a network whose classes exclude each other.

    Parameters
    ----------
    tomogram
        dims ``z, y, x``; normalised here by its own mean and standard deviation.
    model
        Model file or name of a bundled model: a 3D U-Net, DeepFinder's or DeepETPicker's network.
    class_name
        Which class; may be left out where the model has one.
    argmax
        Return for each voxel the class with the highest score, 0 being the background, instead of
        scores (DeepFinder and DeepETPicker).

    Returns
    -------
    xarray.DataArray
        float32, 0..1, lazy; uint8 with ``argmax``.

    Raises
    ------
    ConfigError
        The model has several classes and none was chosen, or not this one, or has no background.

    Examples
    --------
    See docs/python.md.
    """
    from .models.registry import loaded_model, resolve_model

    path = resolve_model(model)
    loaded = loaded_model(path)
    channel = _channel_of(loaded, str(model), class_name, argmax=argmax)
    data = _chunked(tomogram)
    exact = data.astype("float64")
    normalised = ((exact - exact.mean()) / exact.std()).astype("float32")
    name = "labels" if argmax else class_name or "score"
    if loaded.kind in ("deepfinder", "deepetpicker"):
        scores = _scores_of_tiles(loaded, str(path), None if argmax else channel, normalised)
        return _like(scores, tomogram, name)
    settings = loaded.settings
    scores = lazy.map_windows(
        partial(_scores, str(path), channel),
        normalised,
        halo=as_vec(settings.halo),
        align=settings.align,
    )
    return _like(scores, tomogram, name)


def _channel_of(loaded: LoadedModel, model: str, class_name: str | None, *, argmax: bool) -> int:
    """Return the channel of a class, 0 where none is named; refuse what the model cannot give."""
    from .models.architecture import ends_in_softmax

    names = loaded.class_names
    if argmax and (not ends_in_softmax(loaded.settings) or class_name is not None):
        raise ConfigError(
            f"{model}: argmax: expected a DeepFinder or DeepETPicker model of several classes and "
            f"no class_name, found a model of {', '.join(names)}"
        )
    if not argmax and class_name not in names and (class_name is not None or len(names) > 1):
        raise ConfigError(f"{model}: expected one of the classes {names}, found {class_name}")
    return 0 if class_name is None else names.index(class_name)


def _scores_of_tiles(loaded: LoadedModel, path: str, channel: int | None, data: Any) -> Any:
    """Return one class of DeepFinder's or DeepETPicker's network, or the labels for None."""
    from .segmentation.class_scores import LabelsOp
    from .segmentation.deepetpicker_tiles import DeepETPickerOp
    from .segmentation.deepfinder_windows import DeepFinderOp
    from .segmentation.fixed_tiles import tile_grid

    shape, chunk = as_vec(data.shape), as_vec([c[0] for c in data.chunks])
    op: Any
    if loaded.kind == "deepfinder":
        op = DeepFinderOp(path, 0.0, 1.0, channel)
        grid = Grid(shape, as_vec([max(c, op.halo[0]) for c in chunk]), op.halo, op.align)
    else:
        op = DeepETPickerOp(path, 0.0, 1.0, channel, shape=shape)
        grid = tile_grid(shape, as_vec([max(c, op.settings.step) for c in chunk]), op)
    return lazy.map_op(LabelsOp(op) if channel is None else op, data, grid)


def _scores(model: str, channel: int, window: Any) -> Any:
    """Return one class of one window: the body of a task."""
    from .models.registry import inference_network
    from .segmentation.windows import predict_window

    return predict_window(inference_network(model), window)[channel]


@dataclass(frozen=True)
class _RootNames:
    """What became of labels, from the root of a reduction that kept everything."""

    root: LabelNode

    def renames_above(self, block: Block) -> Sequence[Renames]:
        """Return all renames; they are chained already."""
        del block
        return [self.root.renames]

    def kept_names(self) -> Any:
        """Return the sorted names of the kept clusters."""
        return np.sort(self.root.kept["first_voxel"])


def _reduction(
    score: xr.DataArray, threshold: float, connectivity: int, sizes: tuple[int, int | None]
) -> LabelReduction:
    return LabelReduction(
        as_vec(score.shape),
        SelectSettings(threshold=threshold),
        connectivity,
        KeepRule(min_size=sizes[0], max_size=sizes[1]),
    )


def label(
    score: xr.DataArray,
    *,
    threshold: float = 0.5,
    connectivity: int = 26,
    min_size: int = 1,
    max_size: int | None = None,
) -> xr.DataArray:
    """Label the clusters of a score map, as skimage.measure.label does on the whole.

    Parameters
    ----------
    score
        dims ``z, y, x``.
    threshold
        Voxels above it count.
    connectivity
        6, 18 or 26.
    min_size, max_size
        Limits in voxels, inclusive.

    Returns
    -------
    xarray.DataArray
        int64 label map, 0 is background, lazy.

    Examples
    --------
    >>> import xarray as xr
    >>> score = xr.DataArray(np.array([[[0.9, 0.9, 0.1, 0.8]]]), dims=("z", "y", "x"))
    >>> label(score.chunk(x=2)).values
    array([[[1, 1, 0, 2]]])
    """
    reduction = _reduction(score, threshold, connectivity, (min_size, max_size))
    data = _chunked(score)
    grid = lazy.grid_of(data)
    root = lazy.reduce_blocks(reduction, [data], grid)
    relabel = partial(_relabel_op, reduction)
    return _like(lazy.map_blocks(relabel, root, [data], grid, "int64"), score, "label")


def _relabel_op(reduction: LabelReduction, root: LabelNode) -> RelabelOp:
    return RelabelOp(
        reduction.shape,
        reduction.select,
        _RootNames(root),
        reduction.connectivity,
        as_label_map=True,
    )


def pick(
    score: xr.DataArray,
    *,
    threshold: float = 0.5,
    connectivity: int = 26,
    min_size: int = 1,
    max_size: int | None = None,
) -> Any:
    """Return the picks of a score map.

    Parameters
    ----------
    score
        dims ``z, y, x``.
    threshold, connectivity, min_size, max_size
        As for `label`.

    Returns
    -------
    dask.delayed.Delayed
        ``.compute()`` gives a `pandas.DataFrame`: ``z, y, x`` (voxels), ``score``, ``n_voxels``,
        ``label``. It is delayed because the number of picks is not known before.

    Examples
    --------
    >>> import xarray as xr
    >>> score = xr.DataArray(np.array([[[0.9, 0.9, 0.1, 0.8]]]), dims=("z", "y", "x"))
    >>> pick(score.chunk(x=2)).compute()["x"].tolist()
    [0.5, 3.0]
    """
    reduction = _reduction(score, threshold, connectivity, (min_size, max_size))
    data = _chunked(score)
    root = lazy.reduce_blocks(reduction, [data], lazy.grid_of(data))
    return lazy.compute_delayed(partial(_picks, score_unit(data.dtype)), root)


def _picks(unit: float, root: LabelNode) -> Any:
    return picks_table(cluster_table(sorted_rows(root.kept), score_unit=unit))
