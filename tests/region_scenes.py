"""Score maps, region masks and distances to them on the whole volume."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_cdt, distance_transform_edt, gaussian_filter

from deepict_dask.core.geometry import Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr

SPACING = 13.48
VOXEL_NM = SPACING / 10


def store(path, volume, spacing=SPACING):
    header = VolumeHeader(volume.shape, str(volume.dtype), spacing)
    writer = create_ome_zarr(path, header, overwrite=True)
    for block in Grid(volume.shape, writer.write_shape):
        writer.write(block.write, volume[block.write.slices])
    return path


def smooth_noise(shape, seed, sigma):
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return noise / np.abs(noise).max()


def region_mask(shape, kind, seed):
    """A mask of one of the kinds that differ in what is looked at."""
    rng = np.random.default_rng(seed)
    if kind == "blobs":
        return (smooth_noise(shape, seed, 3) > 0.4).astype("float32")
    if kind == "noise":
        return (rng.random(shape) < 0.05).astype("uint8")
    mask = np.zeros(shape, "uint8")
    if kind == "one voxel":
        mask[tuple(rng.integers(0, shape))] = 255
    elif kind == "one plane":
        mask[:, rng.integers(0, shape[1])] = 1
    elif kind == "box":
        low = rng.integers(0, shape)
        high = rng.integers(low, shape) + 1
        mask[tuple(map(slice, low, high))] = 7
    elif kind == "full":
        mask[:] = 1
    return mask


KINDS = ("blobs", "noise", "one voxel", "one plane", "box", "full", "empty")


def whole_distance(mask, metric="euclidean"):
    """Return the distance of every voxel to the mask, in voxels, as SciPy finds it."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    if metric == "chessboard":
        return distance_transform_cdt(mask == 0, metric="chessboard").astype(float)
    return distance_transform_edt(mask == 0)


def points_at(shape, *places):
    score = np.zeros(shape, "float32")
    for place in places:
        score[place] = 1
    return score
