"""Volumes with a voxel spacing, for the tests of DeePiCt's defects."""

from __future__ import annotations

import mrcfile

from deepict_dask.core.geometry import Box
from deepict_dask.io.volumes import open_volume

SPACING = 13.48


def write(path, volume, spacing=SPACING):
    mrcfile.write(path, volume, voxel_size=spacing, overwrite=True)
    return path


def read(path):
    reader = open_volume(path)
    return reader.read(Box.whole(reader.header.shape))
