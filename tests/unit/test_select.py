"""Choice of the kernel backend."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels import select
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.kernels.select import select_kernels

CUDA = torch.device("cuda", 0)


class StubTritonKernels:
    name = "triton"


@pytest.fixture
def gpu_of(monkeypatch):
    """gpu_of(capability, triton=True): a CUDA device as select_kernels sees it."""

    def make(capability, *, triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        spec = object() if triton else None
        monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: spec)
        backend = ModuleType("sp_runtime.kernels.triton_backend")
        backend.TritonKernels = StubTritonKernels
        monkeypatch.setitem(sys.modules, backend.__name__, backend)
        return CUDA

    return make


def test_auto_on_the_cpu_is_the_reference_and_says_why():
    choice = select_kernels("auto", torch.device("cpu"))
    assert isinstance(choice.kernels, ReferenceKernels)
    assert choice.name == "reference"
    assert "cpu" in choice.reason


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)], ids=str)
@pytest.mark.parametrize("name", ["auto", "triton"])
def test_triton_runs_on_capable_gpus(gpu_of, name, capability):
    choice = select_kernels(name, gpu_of(capability))
    assert isinstance(choice.kernels, StubTritonKernels)
    assert choice.name == "triton"


def test_auto_names_the_capability(gpu_of):
    assert "compute capability 9.0" in select_kernels("auto", gpu_of((9, 0))).reason


def test_auto_on_an_old_gpu_is_the_reference_and_says_why(gpu_of):
    choice = select_kernels("auto", gpu_of((7, 5)))
    assert choice.name == "reference"
    assert "7.5 is under 8.0" in choice.reason


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_triton_by_name_never_falls_back(device):
    with pytest.raises(UnsupportedError, match=f"triton kernels cannot run on {device}"):
        select_kernels("triton", torch.device(device))


def test_triton_by_name_is_refused_on_an_old_gpu(gpu_of):
    with pytest.raises(UnsupportedError, match=r"under 8\.0"):
        select_kernels("triton", gpu_of((7, 5)))


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_a_missing_triton_package_is_named(gpu_of, name):
    with pytest.raises(UnsupportedError, match="package triton is not installed"):
        select_kernels(name, gpu_of((9, 0), triton=False))


def test_reference_by_name_runs_on_a_gpu(gpu_of):
    choice = select_kernels("reference", gpu_of((9, 0)))
    assert isinstance(choice.kernels, ReferenceKernels)
    assert choice.reason == "asked for by name"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown kernels 'cuda'.*auto, triton, reference"):
        select_kernels("cuda", "cpu")


@pytest.mark.gpu
def test_auto_on_a_real_gpu_is_triton():
    from sp_runtime.kernels.triton_backend import TritonKernels

    assert isinstance(select_kernels("auto", CUDA).kernels, TritonKernels)
