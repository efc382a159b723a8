"""A stand-in for CuPy that computes on the CPU and refuses what CuPy refuses.

It is stricter than NumPy in what has broken code on GPUs before, and no looser than CuPy:

* an array never becomes a NumPy array by itself: ``np.asarray(x)`` raises TypeError;
* functions take stand-in arrays and scalars only, a NumPy array raises TypeError;
* functions that CuPy lacks are absent, and so are arguments that it lacks;
* ``ufunc.at`` takes the types for which CuPy has atomic operations, and no others;
* reductions return arrays without axes, not scalars;
* ``set`` takes a NumPy array of the same type and shape, and nothing else.

Copies to the host are counted (`Transfers`), so that a test can say what may leave the device, and
so are copies to the device, by where they come from.
What it cannot show: wrong results of CuPy itself, speed, memory.
"""

from __future__ import annotations

import functools
import threading
import types
from dataclasses import dataclass, field

import numpy as np
import scipy.fft
import scipy.ndimage

ATOMIC_ADD = ("int32", "uint32", "uint64", "float16", "float32", "float64")
ATOMIC_EXTREMUM = ("int32", "uint32", "uint64", "float32", "float64")
FUNCTIONS = (
    "abs", "add", "arange", "argmax", "ascontiguousarray", "asarray", "bincount",
    "broadcast_to", "concatenate", "cumsum", "empty", "empty_like", "exp", "flatnonzero",
    "floor_divide", "full", "hypot", "interp", "isfinite", "isnan", "maximum", "minimum",
    "moveaxis", "nonzero", "ones", "pad", "rint", "searchsorted", "sqrt", "square", "stack",
    "subtract", "unique", "where", "zeros", "zeros_like"
)  # fmt: skip
"""Each is in CuPy 13.3 and 14.2 (``tests/test_gpu.py`` looks where CuPy is installed)."""


@dataclass
class Transfers:
    """Bytes that went to the host and to the device, by copy."""

    to_host: list[int] = field(default_factory=list)
    to_device: list[int] = field(default_factory=list)
    """Copied to page-locked memory first, by ``asarray``."""
    to_device_from_pinned: list[int] = field(default_factory=list)

    def clear(self):
        """Forget what was counted."""
        for counted in (self.to_host, self.to_device, self.to_device_from_pinned):
            counted.clear()


transfers = Transfers()


class PinnedMemoryPointer(bytearray):
    """A block of page-locked memory, which goes back to its pool when nobody has it any more."""

    def __del__(self):
        pinned_pool.free.append(len(self))


class PinnedPool:
    """What CuPy keeps of page-locked memory: blocks of sizes that are taken again."""

    def __init__(self):
        self.lock = threading.Lock()
        self.clear()

    def clear(self):
        """Forget all blocks, and have room for any."""
        self.free, self.made, self.room = [], [], float("inf")

    def block(self, size):
        with self.lock:
            if size in self.free:
                self.free.remove(size)
            elif size > self.room:
                raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
            else:
                self.made.append(size)
        return PinnedMemoryPointer(size)

    def free_all_blocks(self):
        self.free.clear()


pinned_pool = PinnedPool()


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where a call of CUDA fails."""


def empty_pinned(shape, dtype=float, order="C"):
    """Return an array of the host in page-locked memory."""
    block = pinned_pool.block(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.ndarray(shape, dtype, buffer=block, order=order)


class OutOfMemoryError(MemoryError):
    """What CuPy's allocator raises."""


class Array:
    """An array "on a GPU"."""

    __array_priority__ = 100

    def __init__(self, values):
        assert type(values) is np.ndarray
        self._values = values

    def __array__(self, *_args, **_kwargs):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method == "at":
            return at(ufunc, *inputs)
        if method != "__call__":
            raise TypeError(f"{ufunc.__name__}.{method}: call it on the array's own library")
        if "out" in kwargs:
            kwargs["out"] = tuple(map(unwrapped, kwargs["out"]))
            ufunc(*map(unwrapped, inputs), **kwargs)
            return inputs[0]
        return wrapped(ufunc(*map(unwrapped, inputs), **kwargs))

    def __array_function__(self, function, _types, _args, _kwargs):
        raise TypeError(f"numpy.{function.__name__} was given an array on a GPU: use namespace_of")

    def get(self):
        transfers.to_host.append(self._values.nbytes)
        return self._values.copy()

    def set(self, arr):
        if type(arr) is not np.ndarray:
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        transfers.to_device_from_pinned.append(arr.nbytes)
        self._values[...] = arr

    def __bool__(self):
        return bool(self._values)

    def __float__(self):
        return float(self._values)

    def __int__(self):
        return int(self._values)

    def __complex__(self):
        return complex(self._values)

    __index__ = __int__

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return (wrapped(part) for part in self._values)

    def __getitem__(self, where):
        return wrapped(self._values[unwrapped_index(where)])

    def __setitem__(self, where, value):
        self._values[unwrapped_index(where)] = unwrapped(value)

    def __dlpack__(self, **kwargs):
        return self._values.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()

    @property
    def flags(self):
        return types.SimpleNamespace(c_contiguous=self._values.flags.c_contiguous)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        assert casting is None
        assert subok is None
        return wrapped(self._values.astype(dtype, order=order, copy=copy))

    # as CuPy has them: no ``initial``, no ``where``
    def max(self, axis=None, out=None, keepdims=False):
        return wrapped(self._values.max(axis=axis, out=out, keepdims=keepdims))

    def min(self, axis=None, out=None, keepdims=False):
        return wrapped(self._values.min(axis=axis, out=out, keepdims=keepdims))

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return wrapped(self._values.sum(axis=axis, dtype=dtype, out=out, keepdims=keepdims))

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return wrapped(self._values.mean(axis=axis, dtype=dtype, out=out, keepdims=keepdims))

    def all(self, axis=None, out=None, keepdims=False):
        return wrapped(self._values.all(axis=axis, out=out, keepdims=keepdims))

    def any(self, axis=None, out=None, keepdims=False):
        return wrapped(self._values.any(axis=axis, out=out, keepdims=keepdims))


Array.__module__, Array.__qualname__ = "cupy._core.core", "ndarray"


def _delegated(name):
    def method(self, *args, **kwargs):
        return wrapped(getattr(self._values, name)(*map(unwrapped, args), **kwargs))

    return method


for _name in (
    "copy", "dot", "nonzero", "ravel", "reshape", "squeeze", "take", "transpose", "view",
    "__abs__", "__add__", "__and__", "__eq__", "__floordiv__", "__ge__", "__gt__", "__invert__",
    "__le__", "__lt__", "__matmul__", "__mod__", "__mul__", "__ne__", "__neg__", "__or__",
    "__pow__", "__radd__", "__rmul__", "__rshift__", "__rsub__", "__rtruediv__", "__sub__",
    "__truediv__", "__xor__",
):  # fmt: skip
    setattr(Array, _name, _delegated(_name))


def _in_place(name):
    def method(self, other):
        getattr(self._values, name)(unwrapped(other))
        return self

    return method


for _name in ["__iadd__", "__iand__", "__imul__", "__ior__", "__isub__", "__itruediv__"]:
    setattr(Array, _name, _in_place(_name))
for _name in ["dtype", "imag", "nbytes", "ndim", "real", "shape", "size", "T"]:
    setattr(Array, _name, property(lambda self, name=_name: wrapped(getattr(self._values, name))))


def unwrapped(value):
    """Return what NumPy computes with; refuse arrays of the host."""
    if isinstance(value, Array):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, list | tuple):
        return type(value)(map(unwrapped, value))
    return value


def unwrapped_index(where):
    return tuple(map(unwrapped, where)) if isinstance(where, tuple) else unwrapped(where)


def wrapped(value):
    """Return arrays and NumPy's scalars as arrays of the stand-in."""
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, np.dtype):
        return Array(np.asarray(value))
    if isinstance(value, tuple) and any(isinstance(each, np.ndarray) for each in value):
        return tuple(map(wrapped, value))
    return value


def at(ufunc, target, where, values):
    """Apply an atomic operation, where CuPy has one."""
    allowed = ATOMIC_ADD if ufunc is np.add else ATOMIC_EXTREMUM
    assert ufunc in (np.add, np.maximum, np.minimum)
    if target.dtype.name not in allowed:
        raise TypeError(f"scatter_{ufunc.__name__} only supports {allowed}, not {target.dtype}")
    values = unwrapped(values)
    if ufunc is not np.add and target.dtype == np.float64:
        values = values.astype(np.float32)  # as CuPy's fmaxf and fminf do
    ufunc.at(unwrapped(target), unwrapped_index(where), values)


def _function(name):
    function = getattr(np, name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return wrapped(
            function(*map(unwrapped, args), **{k: unwrapped(v) for k, v in kwargs.items()})
        )

    if isinstance(function, np.ufunc):
        call.at = functools.partial(at, function)
    return call


def asarray(values, dtype=None):
    """Copy to the device, by way of page-locked memory."""
    if isinstance(values, Array):
        return values if dtype is None else values.astype(dtype, copy=False)
    transfers.to_device.append(np.asarray(values).nbytes)
    return Array(np.array(values, dtype=dtype))


def _ours(library, names):
    """Return a module of some functions of SciPy, for arrays of the stand-in."""

    def of(name):
        function = getattr(library, name)
        return lambda *args, **kwargs: wrapped(function(*map(unwrapped, args), **kwargs))

    return {name: of(name) for name in names}


def label_as_cucim(image, background=None, return_num=False, connectivity=None):
    """Label as cuCIM does; it returns Python's integer."""
    assert background is None
    structure = scipy.ndimage.generate_binary_structure(3, connectivity)
    labels, n = scipy.ndimage.label(unwrapped(image), structure)
    return (Array(labels), int(n)) if return_num else Array(labels)


def label_as_cupyx(values, structure=None, output=None):
    """Label as cupyx does: the structure is a NumPy array there too."""
    assert output is None
    labels, n = scipy.ndimage.label(unwrapped(values), structure)
    return Array(labels), int(n)


def modules(free_bytes=8 << 30, n_gpus=1, with_cucim=True):
    """Return modules by name, to be put into ``sys.modules``."""

    def made(name, **content):
        module = types.ModuleType(name)
        vars(module).update(content)
        return module

    properties = {"name": b"Stand-in", "totalGlobalMem": free_bytes}
    runtime = made(
        "cupy.cuda.runtime",
        getDeviceCount=lambda: n_gpus,
        getDeviceProperties=lambda _number: properties,
    )
    device = types.SimpleNamespace(id=0, mem_info=(free_bytes, free_bytes))
    cuda = made("cupy.cuda", runtime=runtime, Device=lambda: device)
    emptied: list[str] = []
    pool = types.SimpleNamespace(free_all_blocks=lambda: emptied.append("pool"))
    plans = types.SimpleNamespace(clear_plan_cache=lambda: emptied.append("plans"))
    cupy = made("cupy", **{name: _function(name) for name in FUNCTIONS})
    cupy.asarray, cupy.ndarray, cupy.cuda = asarray, Array, cuda
    cupy.from_dlpack = lambda tensor: Array(np.from_dlpack(tensor))
    cupy.fft, cupy.emptied = types.SimpleNamespace(config=plans), emptied
    cupy.get_default_memory_pool = lambda: pool
    cupy.get_default_pinned_memory_pool = lambda: pinned_pool
    names = ("fft", "ifft", "rfft", "irfft", "rfft2", "irfft2", "rfftn", "irfftn", "fftn", "ifftn")
    fft = made("cupyx.scipy.fft", **_ours(scipy.fft, names))
    ndimage = made("cupyx.scipy.ndimage", label=label_as_cupyx)
    cupyx = made("cupyx", empty_pinned=empty_pinned)
    found = [cupy, cuda, runtime, fft, ndimage, cupyx, made("cupyx.scipy")]
    if with_cucim:
        found += [made("cucim"), made("cucim.skimage")]
        found.append(made("cucim.skimage.measure", label=label_as_cucim))
    return {module.__name__: module for module in found} | (
        {} if with_cucim else {"cucim": None, "cucim.skimage": None, "cucim.skimage.measure": None}
    )
