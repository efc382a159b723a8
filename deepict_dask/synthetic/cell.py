"""Make a cell and write it.

A tomogram is signal plus noise. The signal has variance 1 in the cytosol; the noise has variance
``1 / signal_to_noise`` there. Six random streams (membranes, places, orientations, densities,
noise, large mitochondria) are independent children of one seed, so that a change of the noise moves
no particle, and a cell without large mitochondria does not depend on how they are made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, OutputExistsError
from .imaging import coloured_noise, see
from .placement import place_particles
from .scene import paint_scene
from .settings import LABELS, MATRIX_NAMES, CellSettings
from .shapes import SHAPES, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from .scene import Scene

__all__ = ["Cell", "make_cell", "write_cell"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, eq=False)
class Cell:
    """A tomogram and its truth."""

    settings: CellSettings
    tomogram: Floats
    """Float32, zyx; mass is dark (negative)."""
    labels: Bytes
    """Uint8, zyx; values as in `LABELS`."""
    cytosol: Bytes
    """Uint8, zyx; 1 in the cytosol, its particles included."""
    picks: pd.DataFrame
    """One row per particle, distractors and those of a matrix included: centre z, y, x (voxels,
    0-based), class_name, and the unit quaternion qx, qy, qz, qw (scalar last) that turns the
    particle's own xyz frame into the tomogram's."""

    def picks_of(self, class_name: str) -> Floats:
        """Return the centres of one class as a float32 array (n, 3), zyx voxels."""
        rows = self.picks[self.picks["class_name"] == class_name]
        return rows[["z", "y", "x"]].to_numpy(np.float32)


def make_cell(settings: CellSettings | None = None) -> Cell:
    """Make a synthetic cell.

    Parameters
    ----------
    settings
        What to make; the defaults are a cell of 128 x 256 x 256 voxels.

    Returns
    -------
    Cell
        The tomogram, and the truth about it.

    Raises
    ------
    ConfigError
        If the particles do not fit in the cytosol.

    Examples
    --------
    >>> small = CellSettings((48, 64, 64), n_ribosomes=2, n_fas=1, n_distractors_each=0)
    >>> cell = make_cell(small)
    >>> cell.tomogram.shape, cell.tomogram.dtype.name, sorted(cell.picks["class_name"])
    ((48, 64, 64), 'float32', ['fas', 'ribosome', 'ribosome'])
    """
    settings = settings or CellSettings()
    seeds = np.random.SeedSequence(settings.seed).spawn(6)
    membranes, places, turns, masses, noise, other = (np.random.default_rng(s) for s in seeds)
    scene = paint_scene(settings, membranes, other)
    picks = _placed(scene.cytosol, settings.counts, settings, places, turns)
    _paint_particles(scene, picks, settings, masses)
    if settings.matrix_counts:
        inner = _placed(scene.matrix, settings.matrix_counts, settings, other, other)
        _paint_particles(scene, inner, settings, other)
        picks = _joined(picks, inner)
    tomogram = _with_noise(see(scene.density, settings), scene.cytosol, settings, noise)
    return Cell(settings, tomogram, scene.labels, scene.cytosol, picks)


def _placed(
    where: Bytes,
    counts: Mapping[str, int],
    settings: CellSettings,
    places: np.random.Generator,
    turns: np.random.Generator,
) -> pd.DataFrame:
    """Return a table of particles that lie inside a mask."""
    radii = {name: _radius_voxels(SHAPES[name], settings) for name in counts}
    return _pick_table(place_particles(where, counts, radii, places), turns)


def _joined(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([first, second], ignore_index=True)


def _radius_voxels(shape: Shape, settings: CellSettings) -> float:
    """Return the radius of a particle's ball, with half a voxel for its soft edge."""
    return shape.radius_nm * 10 / settings.voxel_spacing_angstrom + 0.5


def _pick_table(centres: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Give every centre a uniformly random orientation."""
    import pandas as pd

    points = np.concatenate(list(centres.values())).astype(np.float32)
    table = pd.DataFrame(points, columns=["z", "y", "x"])
    table["class_name"] = np.repeat(list(centres), [len(rows) for rows in centres.values()])
    quaternions = rng.standard_normal((len(table), 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    table[["qx", "qy", "qz", "qw"]] = quaternions.astype(np.float32)
    return table


def _paint_particles(
    scene: Scene, picks: pd.DataFrame, settings: CellSettings, rng: np.random.Generator
) -> None:
    """Add every particle to the density and the labels; masses of one class differ by 10 %."""
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_quat(picks[["qx", "qy", "qz", "qw"]].to_numpy()).as_matrix()
    # Axes are reversed on both sides: xyz in the quaternion, zyx in the volume.
    matrices = matrices[:, ::-1, ::-1].astype(np.float32)
    factors = rng.normal(1.0, 0.1, len(picks)).clip(0.7, 1.3)
    centres = picks[["z", "y", "x"]].to_numpy(np.int64)
    for name, centre, matrix, factor in zip(
        picks["class_name"], centres, matrices, factors, strict=True
    ):
        _paint_particle(
            scene, SHAPES[name], centre, matrix * (settings.voxel_spacing_angstrom / 10), factor
        )


def _paint_particle(
    scene: Scene, shape: Shape, centre: Any, to_volume: Floats, factor: float
) -> None:
    """Add one particle; ``to_volume`` is a rotation times the voxel spacing in nm."""
    spacing_nm = float(np.cbrt(np.linalg.det(to_volume)))
    reach = math.ceil(shape.radius_nm / spacing_nm) + 1
    offsets = np.mgrid[(slice(-reach, reach + 1),) * 3].astype(np.float32)
    # The transpose turns volume offsets back into the particle's frame.
    points = np.einsum("ji,j...->i...", to_volume, offsets)
    distance = shape.distance(points) / spacing_nm
    box = tuple(slice(max(0, c - reach), c + reach + 1) for c in centre)
    inner = tuple(
        slice(max(0, reach - c), reach + min(reach + 1, n - c))
        for c, n in zip(centre, scene.density.shape, strict=True)
    )
    distance = distance[inner]
    fill = np.clip(0.5 - distance, 0, 1)
    if shape.name in MATRIX_NAMES:  # it displaces the dense matrix
        scene.density[box] *= 1 - fill
    scene.density[box] += fill * np.float32(shape.density * factor)
    scene.labels[box][distance < 0] = LABELS[shape.name]


def _with_noise(
    signal: Floats, cytosol: Bytes, settings: CellSettings, rng: np.random.Generator
) -> Floats:
    """Scale the signal to variance 1 in the cytosol and add noise of variance 1 / SNR there."""
    inside = cytosol > 0
    signal *= np.float32(1 / _spread(signal[inside]))
    if math.isinf(settings.signal_to_noise):
        return signal
    noise = coloured_noise(settings, rng)
    noise *= np.float32(1 / (_spread(noise[inside]) * math.sqrt(settings.signal_to_noise)))
    signal += noise
    return signal


def _spread(values: Floats) -> float:
    spread = float(values.std(dtype=np.float64)) if values.size else 0.0
    if spread == 0:
        raise ConfigError(
            "synthetic cell: the cytosol is empty, so its signal-to-noise ratio has no meaning; "
            "ask for a larger shape or for particles"
        )
    return spread


def write_cell(cell: Cell, directory: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
    """Write a cell as tomogram.mrc, labels.mrc, cytosol.mrc and truth.csv.

    Parameters
    ----------
    cell
        What to write. Volumes carry the voxel spacing; the table is `Cell.picks`.
    directory
        Made if it is not there.
    overwrite
        Replace files of these names.

    Returns
    -------
    dict
        The four paths by the names tomogram, labels, cytosol and truth.

    Raises
    ------
    OutputExistsError
        If one of the files is there and may not be replaced; then none is written.

    Examples
    --------
    >>> import tempfile
    >>> cell = make_cell(CellSettings((48, 64, 64), n_ribosomes=1, n_fas=0, n_distractors_each=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in write_cell(cell, folder).values())
    ['cytosol.mrc', 'labels.mrc', 'tomogram.mrc', 'truth.csv']
    """
    folder = Path(directory)
    volumes = {name: folder / f"{name}.mrc" for name in ("tomogram", "labels", "cytosol")}
    paths = volumes | {"truth": folder / "truth.csv"}
    _check_absent(paths, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in volumes.items():
        _write_mrc(path, getattr(cell, name), cell.settings.voxel_spacing_angstrom)
    cell.picks.to_csv(paths["truth"], index=False)
    return paths


def _check_absent(paths: dict[str, Path], *, overwrite: bool) -> None:
    there = [path.name for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise OutputExistsError(
            f"{paths['truth'].parent}: expected none of the cell's files, found {there}; choose "
            "another folder or allow to overwrite"
        )


def _write_mrc(path: Path, volume: np.ndarray[Any, Any], voxel_spacing_angstrom: float) -> None:
    """Write a volume; masks and labels become signed bytes (mode 0), which every program reads."""
    import mrcfile

    data = volume.astype(np.int8) if volume.dtype == np.uint8 else volume
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.set_volume()
        mrc.voxel_size = voxel_spacing_angstrom
