"""What tests of the GPU's turns ask of them."""

import threading

from deepict_dask.backend import device_turn

PATIENCE_S = 60
"""How long a test waits for what must come; it only ends one that fails."""


def turn_is_free():
    """Say whether another thread gets the GPU."""
    got = threading.Event()

    def ask():
        with device_turn():
            got.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    return got.wait(PATIENCE_S)
