"""Make a cell whose truth is known: where every particle is, and what is membrane and cytosol.

1. `scene` paints membranes, a small mitochondrion and vesicles, and says where the cytosol is;
   `mitochondria` adds large ones, whose matrix holds particles of its own.
2. `placement` finds a place for every particle in the cytosol so that no two touch.
3. `shapes` holds the particles: ribosomes, fatty acid synthases (FAS), four distractors and two of
   the matrix.
4. `imaging` sees the scene as an electron microscope does: contrast transfer, missing wedge, noise.
5. `cell` does these in order (`make_cell`) and writes the result (`write_cell`).

Everything follows from `CellSettings`: the same settings give the same bytes.
"""

from .cell import Cell, make_cell, write_cell
from .settings import (
    CONTEXT_CELL,
    DISTRACTOR_NAMES,
    LABELS,
    MATRIX_NAMES,
    PARTICLE_NAMES,
    CellSettings,
)

__all__ = [
    "CONTEXT_CELL",
    "DISTRACTOR_NAMES",
    "LABELS",
    "MATRIX_NAMES",
    "PARTICLE_NAMES",
    "Cell",
    "CellSettings",
    "make_cell",
    "write_cell",
]
