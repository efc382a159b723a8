"""``python -m deepict_dask`` is ``deepict-dask``."""

from .cli import main

if __name__ == "__main__":
    main()
