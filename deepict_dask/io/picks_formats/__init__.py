"""Particle lists of other programs: one file per program, chosen by `deepict_dask.io.picks`.

Each has a ``load`` that turns a path and a `TomogramFrame` into a picks table, and a ``dump`` that
turns these into bytes. docs/coordinates.md says what a position means in each.
"""
