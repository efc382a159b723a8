"""Errors that say where, what was expected, what was found and what to do.

Every error a user can cause is a `DeepictError`. Its ``exit_code`` is 2 where the request is wrong
and 1 where the request was right but some work failed. Each class also inherits the builtin error
that a caller would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "ClusterError",
    "ConfigError",
    "DeepictError",
    "DeviceError",
    "LedgerError",
    "ModelFileError",
    "OutputExistsError",
    "PicksFormatError",
    "ShapeMismatchError",
    "SpacingError",
    "VolumeFormatError",
    "VoxelValueError",
    "WorkFailedError",
]


class DeepictError(Exception):
    """Base of all errors that are shown as one message, without a traceback.

    Parameters
    ----------
    message
        One text: where, what was expected, what was found, what to do.

    Examples
    --------
    >>> raise DeepictError("tomo.mrc: expected 3 axes, found 2; give a volume")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.DeepictError: tomo.mrc: expected 3 axes, found 2; give a volume
    """

    exit_code = 2


class VolumeFormatError(DeepictError, ValueError):
    """A file is not the volume its name says, or is truncated."""


class VoxelValueError(DeepictError, ValueError):
    """Voxels hold NaN or infinite values, or are constant where contrast is needed."""


class SpacingError(DeepictError, ValueError):
    """The voxel spacing is missing, differs per axis, or contradicts another one."""


class ShapeMismatchError(DeepictError, ValueError):
    """Two volumes that belong together differ in shape."""


class ModelFileError(DeepictError, ValueError):
    """A model file is of the wrong kind, damaged, or tries to run code."""


class PicksFormatError(DeepictError, ValueError):
    """A particle list cannot be read or written in this format."""


class ConfigError(DeepictError, ValueError):
    """A setting is unknown, missing or contradictory."""


class OutputExistsError(DeepictError, FileExistsError):
    """An output is already there and may not be replaced."""


class LedgerError(DeepictError, RuntimeError):
    """Unfinished work on disk belongs to another request, or to a run that is still alive."""


class BudgetError(DeepictError, MemoryError):
    """A task would need more memory than a worker may use."""


class DeviceError(DeepictError, RuntimeError):
    """The device that was asked for is not there, or arrays of two devices were mixed."""


class ClusterError(DeepictError, RuntimeError):
    """No workers could be started or reached."""


class WorkFailedError(DeepictError, RuntimeError):
    """The request was right but some of the work failed; what is finished is kept."""

    exit_code = 1
