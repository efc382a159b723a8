"""Tubes whose centrelines are known, for the tests of filaments."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from deepict_dask.core.geometry import Grid
from deepict_dask.filaments import SkeletonReduction, centrelines, filament_table
from deepict_dask.filaments.orientation import direction_of
from deepict_dask.filaments.settings import VoxelLengths

SHAPE = (64, 88, 104)
LENGTHS = VoxelLengths(step=6.0, radius=8, hole=16, min_length=20.0, max_gap=20.0, smoothing=30.0)


def straight(start, stop):
    """Points on a straight line, zyx."""
    return np.linspace(start, stop, 800)


def arc(centre, radius, first, last, climb=0.0):
    """Points on an arc across z that climbs along it."""
    angle = np.linspace(first, last, 2000)
    offsets = [climb * radius * (angle - first), radius * np.sin(angle), radius * np.cos(angle)]
    return np.stack(offsets, axis=-1) + centre


def tube(line, radius, shape=SHAPE, roughness=None):
    """Voxels within a radius of a line; a roughness is added to their distances."""
    grid = np.stack(np.indices(shape), axis=-1).reshape(-1, 3)
    distance, _ = cKDTree(line).query(grid, distance_upper_bound=radius + 6)
    distance = distance.reshape(shape)
    return (distance if roughness is None else distance + roughness) <= radius


def skeleton_of(mask, lengths=LENGTHS, chunks=None):
    """Thin a mask in chunks, as the engine would."""
    op = SkeletonReduction(mask.shape, lengths)
    grid = Grid(mask.shape, chunks or mask.shape, halo=lengths.halo)
    parts = [op.measure(block, mask[block.read.slices]) for block in grid]
    total = parts[0]
    for part in parts[1:]:
        total = op.combine(total, part)
    return op.finalize(total)


def trace(mask, lengths=LENGTHS, chunks=None, **options):
    """Return filaments and their table."""
    skeleton = skeleton_of(mask, lengths, chunks)
    found = centrelines(skeleton.voxels, mask.shape, lengths, **options)
    return found, filament_table(found, lengths.step, voxel_spacing_angstrom=10.0)


def positions(table):
    return table[["z", "y", "x"]].to_numpy()


def directions(table):
    return direction_of(table[["rot_degrees", "tilt_degrees", "psi_degrees"]].to_numpy())


def miss(table, lines):
    """Return how far each pick is from the nearest true line."""
    return cKDTree(np.concatenate(lines)).query(positions(table))[0]


def recall(filaments, lines, within=1.5):
    """Return the part of the true lines that has a centreline near it."""
    found = cKDTree(np.concatenate([filament.curve.points for filament in filaments]))
    return float((found.query(np.concatenate(lines))[0] <= within).mean())


def spacing_error(table, step):
    """Return the largest relative error of the distance of neighbouring picks."""
    errors = [0.0]
    for _, one in table.groupby("filament_id"):
        gaps = np.linalg.norm(np.diff(positions(one), axis=0), axis=1)
        errors.append(np.abs(gaps / step - 1).max(initial=0))
    return max(errors)


def angle_errors(table, line):
    """Return the angles in degrees between picks and the tangents of one true line."""
    _, nearest = cKDTree(line).query(positions(table))
    tangents = np.gradient(line, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    cosine = np.abs((directions(table) * tangents[nearest]).sum(axis=1))
    return np.degrees(np.arccos(np.clip(cosine, 0, 1)))
