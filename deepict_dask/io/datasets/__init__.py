"""Kinds of sources that name tomograms, one file each; `deepict_dask.io.dataset` chooses."""
