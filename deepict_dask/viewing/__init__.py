"""What viewers open of a finished run: OME-Zarr with labels, napari, neuroglancer, the report."""

from .export import ExportedScene, export_scene
from .scene import Scene, scenes_of

__all__ = ["ExportedScene", "Scene", "export_scene", "scenes_of"]
