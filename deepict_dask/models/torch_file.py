"""Read what a PyTorch file says without running anything it contains.

A ``.pth`` file is a pickle, and a pickle is a program: ``torch.load`` would run whatever it names.
Here,

1. an unpickler resolves a short list of names to stand-ins that only take notes, and refuses every
   other name, so that nothing from outside this file is ever called;
2. each tensor becomes a `TensorPlan`: which stored bytes, from where, in which shape;
3. a plan is turned into a tensor only when it is asked for, from the bytes beside the pickle.

Both layouts of PyTorch are read: the zip archive (since 1.6) and the older stream of pickles.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEGACY_START", "Arguments", "Descriptor", "TensorPlan", "TorchFile", "read_torch_file"]

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number that opens a PyTorch file written before 1.6."""

STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

IGNORED_NAMES = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
}
"""Names that checkpoints use for losses, paths and callbacks, which no one here needs."""

DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)
"""What an unpickler raises on bytes that are no whole pickle."""


class Descriptor:
    """Stands in for DeePiCt's ``ModelDescriptor``: its fields arrive in ``__dict__``."""


class Arguments(Descriptor):
    """Stands in for ``argparse.Namespace``, in which Lightning keeps a program's arguments."""


class Ignored:
    """Stands in for a value that is not needed."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class StoragePlan:
    """A run of stored numbers, not yet read."""

    key: str
    dtype: torch.dtype
    n_items: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the run."""
        return self.n_items * self.dtype.itemsize


@dataclass(frozen=True)
class TensorPlan:
    """Where a tensor's numbers are and how they are laid out."""

    storage: StoragePlan
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def build(self, raw: bytes) -> torch.Tensor:
        """Return the tensor, as its own copy."""
        flat = torch.frombuffer(bytearray(raw), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset).clone()


@dataclass(frozen=True, eq=False)
class TorchFile:
    """A PyTorch file whose tensors are plans until `tensor` builds them."""

    content: Any
    """What was saved: dicts and lists of plain values, `TensorPlan` and `Descriptor`."""
    read_storage: Callable[[str], bytes]
    """Returns the bytes of a storage by its key."""

    def tensor(self, plan: TensorPlan) -> torch.Tensor:
        """Return a planned tensor; raises ModelFileError where its bytes are not all there."""
        try:
            raw = self.read_storage(plan.storage.key)
            if len(raw) != plan.storage.n_bytes:
                raise ModelFileError(
                    f"damaged model file: a tensor needs {plan.storage.n_bytes} bytes, "
                    f"found {len(raw)}; copy the file again"
                )
            return plan.build(raw)
        except (KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise ModelFileError(f"damaged model file: {error}; copy the file again") from error


class _NoteTaker(pickle.Unpickler):
    """Unpickles with stand-ins only; each file gets its own, so that none can be tampered with."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, StoragePlan] = {}
        self.stand_ins: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): type("OrderedDict", (OrderedDict,), {}),
            ("constants.statistics", "ModelDescriptor"): type("Fields", (Descriptor,), {}),
            ("argparse", "Namespace"): type("Fields", (Arguments,), {}),
            ("torch._utils", "_rebuild_tensor"): _planned,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _planned(*args[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch", "Size"): lambda sizes: tuple(sizes),
            **{("torch", name): name for name in STORAGE_DTYPES},
            **{name: type("Nothing", (Ignored,), {}) for name in IGNORED_NAMES},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or refuse the file."""
        try:
            return self.stand_ins[module, name]
        except KeyError:
            raise ModelFileError(
                f"the file wants to use {module}.{name}, which no model needs, so nothing in it "
                "was run; expected a checkpoint of tensors (a saved state_dict)"
            ) from None

    def persistent_load(self, pid: Any) -> StoragePlan:
        """Note a storage: ("storage", type, key, device, number of items, ...)."""
        kind, storage_type, key, _, n_items = pid[:5]
        if kind != "storage" or storage_type not in STORAGE_DTYPES:
            raise ModelFileError(f"the file holds a {storage_type}, expected numbers")
        plan = StoragePlan(str(key), STORAGE_DTYPES[storage_type], int(n_items))
        return self.storages.setdefault(plan.key, plan)


def _planned(storage: StoragePlan, offset: int, shape: Any, stride: Any) -> TensorPlan:
    """Note a tensor."""
    return TensorPlan(storage, int(offset), tuple(shape), tuple(stride))


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, StoragePlan]]:
    """Return the next pickled value of a stream, and the storages it refers to."""
    taker = _NoteTaker(stream)
    try:
        return taker.load(), taker.storages
    except ModelFileError:
        raise
    except DAMAGE as error:
        raise ModelFileError(
            f"damaged or truncated model file ({type(error).__name__}: {error}); "
            "copy or download the file again"
        ) from error


def read_torch_file(data: bytes) -> TorchFile:
    """Return what a PyTorch file or a bare pickle holds, without running it.

    Parameters
    ----------
    data
        All bytes of the file.

    Returns
    -------
    TorchFile
        Its content with tensors as plans.

    Raises
    ------
    ModelFileError
        The file names something other than tensors, or is damaged.

    Examples
    --------
    >>> stream = io.BytesIO()
    >>> torch.save({"weight": torch.ones(2, 3)}, stream)
    >>> file = read_torch_file(stream.getvalue())
    >>> file.content["weight"].shape
    (2, 3)
    >>> float(file.tensor(file.content["weight"]).sum())
    6.0
    """
    if data.startswith(b"PK"):
        return _read_zip(data)
    if data.startswith(LEGACY_START):
        return _read_legacy(data)
    return TorchFile(_unpickle(io.BytesIO(data))[0], _no_storage)


def _no_storage(key: str) -> bytes:
    raise KeyError(f"storage {key} is absent")


def _read_zip(data: bytes) -> TorchFile:
    """Read the zip layout: FOLDER/data.pkl and FOLDER/data/KEY."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") == b"big":
            raise ModelFileError("the model was written on a big-endian machine; expected little")
        content, _ = _unpickle(io.BytesIO(archive.read(pickled)))
    except (zipfile.BadZipFile, EOFError, StopIteration) as error:
        raise ModelFileError(
            f"a damaged or truncated zip archive ({error}); copy or download the file again"
        ) from error
    return TorchFile(content, lambda key: archive.read(f"{root}data/{key}"))


def _read_legacy(data: bytes) -> TorchFile:
    """Read the old layout: magic, version, system, content, keys, then each storage's bytes."""
    stream = io.BytesIO(data)
    for _ in ("magic", "version", "system"):
        _unpickle(stream)
    content, plans = _unpickle(stream)
    keys, _ = _unpickle(stream)
    storages: dict[str, bytes] = {}
    for key in keys if isinstance(keys, list) else ():
        header = stream.read(8)  # the number of items, which the plan states too
        if len(header) < 8 or key not in plans:
            raise ModelFileError("truncated model file: weights are missing; copy the file again")
        storages[key] = stream.read(plans[key].n_bytes)
    return TorchFile(content, storages.__getitem__)
