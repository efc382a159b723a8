"""The array decides which library works on it; a stand-in for CuPy shows that on any machine."""

import logging
import subprocess
import sys
import types

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepict_dask import backend
from deepict_dask.backend import components
from deepict_dask.backend import device as device_module
from deepict_dask.core.errors import ConfigError, DeviceError, ShapeMismatchError

RANKS = {6: 1, 18: 2, 26: 3}


class FakeArray:
    """An array "on a GPU": what CuPy's looks like to the dispatcher."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.ndim, self.shape, self.dtype = (
            self.values.ndim,
            self.values.shape,
            self.values.dtype,
        )

    def get(self):
        return self.values.copy()

    def astype(self, dtype, copy=True):
        return FakeArray(self.values.astype(dtype, copy=copy))

    def sum(self):
        return FakeArray(self.values.sum())


FakeArray.__module__ = "cupy._core.core"


def module(name, **content):
    made = types.ModuleType(name)
    vars(made).update(content)
    return made


def fake_runtime(n_gpus=1, failure=None):
    def count():
        if failure is not None:
            raise failure
        return n_gpus

    properties = {"name": b"Fake GPU", "totalGlobalMem": 8 << 30}
    return module(
        "cupy.cuda.runtime",
        getDeviceCount=count,
        getDeviceProperties=lambda _number: properties,
    )


def fake_cupy(free_bytes=6 << 30, **runtime):
    device = types.SimpleNamespace(id=0, mem_info=(free_bytes, 8 << 30))
    cuda = module("cupy.cuda", runtime=fake_runtime(**runtime), Device=lambda: device)
    return module("cupy", asarray=FakeArray, arange=lambda n: FakeArray(np.arange(n)), cuda=cuda)


@pytest.fixture(autouse=True)
def _forget_the_choice():
    device_module._choose.cache_clear()
    yield
    device_module._choose.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    fake = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(device_module, "_torch_is_for_cuda", lambda: True)
    return fake


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_importing_the_backend_imports_neither_cupy_nor_cucim_nor_cc3d():
    code = (
        "import sys, deepict_dask.backend\n"
        "print(sorted({'cupy', 'cupyx', 'cucim', 'cc3d', 'torch', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_numpy_array_is_worked_on_by_numpy_and_scipy():
    voxels = np.zeros(3)
    assert backend.namespace_of(voxels, np.float32(1)) is np
    assert backend.ndimage_of(voxels) is scipy.ndimage
    assert backend.fft_of(voxels) is scipy.fft


def test_a_cupy_array_is_worked_on_by_cupy_and_cupyx(cupy, monkeypatch):
    fft, ndimage = module("cupyx.scipy.fft"), module("cupyx.scipy.ndimage")
    for fake in (module("cupyx"), module("cupyx.scipy"), fft, ndimage):
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    voxels = FakeArray([1, 2])
    assert backend.namespace_of(voxels, voxels) is cupy
    assert backend.fft_of(voxels) is fft
    assert backend.ndimage_of(voxels) is ndimage


@pytest.mark.parametrize("ask", [backend.namespace_of, backend.fft_of, backend.ndimage_of])
@pytest.mark.usefixtures("cupy")
def test_arrays_of_two_places_are_refused(ask):
    with pytest.raises(DeviceError, match="found host, GPU; move them"):
        ask(np.zeros(2), FakeArray([1]))


def test_a_value_that_is_no_array_is_refused_by_its_type():
    with pytest.raises(DeviceError, match=r"found builtins\.list"):
        backend.namespace_of([1, 2])


def test_no_array_at_all_is_refused():
    with pytest.raises(DeviceError, match="found no array"):
        backend.namespace_of()


@pytest.mark.usefixtures("no_cupy")
def test_a_gpu_array_without_its_library_names_the_extra_to_install():
    with pytest.raises(DeviceError, match=r"deepict-dask\[cuda12\]"):
        backend.namespace_of(FakeArray([1]))


@pytest.mark.usefixtures("cupy")
def test_arrays_move_there_and_back_and_stay_where_they_are():
    gpu, cpu = backend.Device("cuda"), backend.Device("cpu")
    voxels = np.arange(4)
    before = backend.bus_bytes()
    there = backend.to_device(voxels, gpu)
    assert isinstance(there, FakeArray)
    assert backend.to_device(there, gpu) is there
    assert backend.to_device(voxels, cpu) is voxels
    assert backend.bus_bytes() - before == backend.BusBytes(to_device=voxels.nbytes)
    np.testing.assert_array_equal(backend.to_host(there), voxels)
    assert backend.bus_bytes() - before == backend.BusBytes(voxels.nbytes, voxels.nbytes)
    np.testing.assert_array_equal(backend.to_device(there, cpu), voxels)


def test_another_device_name_is_refused():
    with pytest.raises(ConfigError, match="found 'gpu'"):
        backend.resolve_device("gpu")


@pytest.mark.usefixtures("cupy")
def test_a_gpu_that_works_is_found_and_described():
    found = backend.resolve_device("cuda")
    assert found.is_gpu
    assert found.description == "Fake GPU (8 GiB)"


@pytest.mark.usefixtures("no_cupy")
def test_asking_for_a_gpu_without_cupy_is_an_error():
    with pytest.raises(DeviceError, match=r"no CuPy .*cuda12.*--device cpu"):
        backend.resolve_device("cuda")


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"failure": RuntimeError("driver version is insufficient")}, "driver version is insuff"),
        ({"n_gpus": 0}, "a driver but no GPU; check CUDA_VISIBLE_DEVICES"),
    ],
)
def test_asking_for_a_gpu_that_is_absent_says_what_is_missing(monkeypatch, runtime, message):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**runtime))
    with pytest.raises(DeviceError, match=message):
        backend.resolve_device("cuda")


@pytest.mark.usefixtures("cupy")
def test_a_pytorch_without_cuda_is_named_and_auto_takes_the_cpu(monkeypatch):
    monkeypatch.setattr(device_module, "_torch_is_for_cuda", lambda: False)
    with pytest.raises(DeviceError, match=r"Fake GPU .* and a PyTorch that cannot use it"):
        backend.resolve_device("cuda")
    assert not backend.resolve_device("auto").is_gpu


@pytest.mark.parametrize("kind", [RuntimeError, type("CompileException", (Exception,), {})])
def test_a_cupy_build_that_cannot_run_a_kernel_is_named(monkeypatch, kind):
    def fail(_n):
        raise kind("no kernel image is available")

    fake = fake_cupy()
    fake.arange = fail
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with pytest.raises(DeviceError, match=r"no kernel image is available.*extra that fits"):
        backend.resolve_device("cuda")


def test_a_cupy_that_cannot_be_loaded_is_told_from_one_that_is_absent(monkeypatch):
    def fail(_name):
        raise ImportError("libcublas.so.12: cannot open shared object file")

    monkeypatch.setattr(device_module.importlib, "import_module", fail)
    with pytest.raises(DeviceError, match=r"cannot be loaded \(libcublas"):
        backend.resolve_device("cuda")


@pytest.mark.usefixtures("no_cupy")
def test_auto_without_a_gpu_takes_the_cpu_and_logs_once(caplog):
    with caplog.at_level(logging.INFO):
        chosen = [backend.resolve_device("auto") for _ in range(3)]
    assert [device.name for device in chosen] == ["cpu"] * 3
    assert [r.message.partition(" (")[0] for r in caplog.records] == ["device auto: using the CPU"]


@pytest.mark.usefixtures("cupy")
def test_auto_with_a_gpu_takes_it(caplog):
    with caplog.at_level(logging.INFO):
        assert backend.resolve_device("auto").is_gpu
    assert "Fake GPU" in caplog.text


def same_partition(labels, oracle):
    pairs = np.unique(np.stack([labels.ravel(), oracle.ravel()]), axis=1)
    return len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]


def missing_gpu():
    try:
        backend.resolve_device("cuda")
        import cucim.skimage.measure  # noqa: F401
    except (DeviceError, ImportError) as error:
        return str(error)
    return ""


places = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def on(place, array):
    if place == "cuda" and (reason := missing_gpu()):
        pytest.skip(reason)
    return backend.to_device(array, backend.resolve_device(place))


@places
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components_are_those_of_scipy(place, connectivity):
    @settings(max_examples=40, deadline=None)
    @given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
    def check(segmentation):
        labels, n = backend.label_components(on(place, segmentation), connectivity)
        structure = scipy.ndimage.generate_binary_structure(3, RANKS[connectivity])
        oracle, n_oracle = scipy.ndimage.label(segmentation, structure)
        labels = backend.to_host(labels)
        assert n == n_oracle == labels.max(initial=0)
        assert labels.dtype == np.int32
        assert same_partition(labels, oracle)
        np.testing.assert_array_equal(labels > 0, segmentation)

    check()


@places
def test_touching_voxels_of_unlike_values_are_one_component(place):
    segmentation = np.array([[[1, 2, 0, 3.5]]], np.float32)
    assert backend.label_components(on(place, segmentation), 6)[1] == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_strided_and_read_only_segmentations_are_labelled_alike(seed):
    segmentation = np.random.default_rng(seed).random((6, 10, 8)) > 0.6
    view = segmentation[::2, ::-1].transpose(2, 0, 1)
    view.flags.writeable = False
    labels, n = backend.label_components(view, 18)
    copied, n_copied = backend.label_components(np.ascontiguousarray(view), 18)
    assert n == n_copied
    assert same_partition(labels, copied)


@pytest.mark.parametrize("connectivity", [1, 8, "26"])
def test_another_connectivity_is_refused(connectivity):
    with pytest.raises(ConfigError, match="expected 6, 18 or 26"):
        backend.label_components(np.zeros((2, 2, 2), bool), connectivity)


def test_a_slice_is_no_volume():
    with pytest.raises(ShapeMismatchError, match="2 axes"):
        backend.label_components(np.zeros((2, 2), bool), 6)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_a_segmentation_on_a_gpu_is_labelled_by_cucim(monkeypatch, connectivity):
    asked = []

    def label(foreground, connectivity, return_num):
        asked.append((foreground.dtype, connectivity, return_num))
        return FakeArray(foreground.values.astype(np.int64)), 1

    for name in ("cucim", "cucim.skimage"):
        monkeypatch.setitem(sys.modules, name, module(name))
    measure = module("cucim.skimage.measure", label=label)
    monkeypatch.setitem(sys.modules, measure.__name__, measure)
    labels, n = backend.label_components(FakeArray(np.ones((1, 1, 2), np.uint8)), connectivity)
    assert asked == [(bool, RANKS[connectivity], True)]
    assert (labels.dtype, n) == (np.int32, 1)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_without_cucim_cupy_labels(monkeypatch, connectivity):
    def label(foreground, structure):
        found, n = scipy.ndimage.label(foreground.values, structure)
        return FakeArray(found), n

    monkeypatch.setitem(sys.modules, "cucim", None)
    for fake in (module("cupyx"), module("cupyx.scipy"), module("cupyx.scipy.ndimage")):
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    sys.modules["cupyx.scipy.ndimage"].label = label
    segmentation = np.random.default_rng(0).random((5, 6, 7)) > 0.8
    labels, n = backend.label_components(FakeArray(segmentation), connectivity)
    expected, n_expected = backend.label_components(segmentation, connectivity)
    assert n == n_expected
    assert same_partition(labels.values, expected)


def test_more_voxels_than_a_gpu_can_count_are_labelled_on_the_host(monkeypatch):
    """Kernels of CuPy and cuCIM before spring 2026 leave the last voxels out."""
    monkeypatch.setitem(sys.modules, "cupy", module("cupy", asarray=FakeArray))
    segmentation = np.random.default_rng(0).random((5, 6, 7)) > 0.8
    monkeypatch.setattr(components, "_MOST_ON_GPU", segmentation.size - 1)
    monkeypatch.setattr(components, "_label_on_gpu", None)
    labels, n = backend.label_components(FakeArray(segmentation), 26)
    expected, n_expected = backend.label_components(segmentation, 26)
    assert isinstance(labels, FakeArray)
    assert n == n_expected
    np.testing.assert_array_equal(labels.values, expected)


def test_a_gpu_that_others_have_filled_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(free_bytes=1 << 30))
    with pytest.raises(DeviceError, match=r"1\.0 GiB free on Fake GPU .8 GiB., less than 2 GiB"):
        backend.resolve_device("cuda")


@pytest.mark.gpu
def test_fft_keeps_single_precision_on_a_gpu():
    voxels = on("cuda", np.ones((4, 4, 4), np.float32))
    assert backend.fft_of(voxels).rfftn(voxels).dtype == np.complex64


@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 40, 1), (40, 1, 1), (1, 1, 1), (1, 7, 9)])
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_rows_of_voxels_are_labelled_as_scipy_labels_them(shape, connectivity):
    rng = np.random.default_rng(0)
    structure = scipy.ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    for density in (0, 0.3, 0.6, 1):
        for _ in range(20):
            segmentation = rng.random(shape) < density
            labels, n = backend.label_components(segmentation, connectivity)
            expected, n_expected = scipy.ndimage.label(segmentation, structure)
            assert labels.shape == shape
            assert n == n_expected
            pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
            assert pairs.shape[1] == len(np.unique(expected))
