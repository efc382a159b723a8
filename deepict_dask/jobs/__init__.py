"""One file per job: paths and settings in, finished outputs out.

A job opens its inputs, checks them, plans blocks within the memory budget, lets the engine run an
op, and gives the output its name when all of it is written. What many files serve has a folder:

- `segmenting`: networks over a tomogram, 3D, 2D and in DeepETPicker's tiles
- `picking`: scores to clusters, regions and picks; from a store, or as they are predicted
- `particle_lists`: lists checked, compared, merged and painted
- `training`: a network, its folds, its search, its rounds of annotation
- `runs`: what a run keeps of itself, its status and its summary
"""
