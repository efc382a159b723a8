"""Turn scores into clusters and picks, by connected components or by other methods."""
