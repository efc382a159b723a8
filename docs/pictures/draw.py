"""Draw the pictures of the documentation from the package's own functions.

``python docs/pictures/draw.py [NAME...] [--into FOLDER]``; all, beside this file, by default.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in HERE.glob("*.py") if path.stem not in {"draw", "style"}))


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--into", type=Path, default=HERE)
    asked = parser.parse_args()
    sys.path.insert(0, str(HERE))
    for name in asked.names:
        importlib.import_module(name).draw(asked.into / f"{name}.png")
        print(asked.into / f"{name}.png")


if __name__ == "__main__":
    main()
