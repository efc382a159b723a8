"""Ask whether the packages are at hand that training needs and prediction does not."""

from __future__ import annotations

from importlib.util import find_spec

from ..core.errors import ConfigError

__all__ = ["require_training_packages"]

NEEDED = ("lightning", "monai", "tensorboard")


def require_training_packages() -> None:
    """Refuse to train where a package of the extra ``train`` is absent.

    Raises
    ------
    ConfigError
        Names what is missing, and the command that installs it.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training needs {', '.join(NEEDED)}, and {', '.join(missing)} is not installed; "
            "run, in the folder of the repository: pip install -c constraints.txt -e '.[train]'"
        )
