"""One file per format: volumes, particle lists, spectra and dataset tables."""
