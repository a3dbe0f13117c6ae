"""Errors that torch raises from a configuration are told with a remedy."""

import pytest
import torch
from torch import nn

from snnexp.engine.experiment import restore_kernels
from snnexp.errors import RunFailed, UserError
from snnexp.errors.remedies import first_words, remedy


def raised(call) -> Exception:
    with pytest.raises((RuntimeError, ValueError, IndexError)) as found:
        call()
    return found.value


def deterministic(call):
    def strict():
        with restore_kernels():
            torch.use_deterministic_algorithms(True)
            call()

    return strict


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.BatchNorm2d(4)(torch.ones(1, 4, 1, 1)), "batch_size"),
        (lambda: nn.BatchNorm1d(4)(torch.ones(1, 4)), "batch_size"),
        (lambda: nn.InstanceNorm1d(4)(torch.ones(1, 4, 1)), None),
        (lambda: nn.MaxPool2d(2)(torch.ones(1, 4, 1, 1)), "dataset.size"),
        (lambda: nn.Conv2d(4, 4, 3)(torch.ones(1, 4, 1, 1)), "dataset.size"),
        (lambda: nn.Linear(4, 2)(torch.ones(1, 3)), "model.*"),
        (lambda: nn.Conv2d(4, 4, 3)(torch.ones(1, 2, 9, 9)), "model.*"),
        (lambda: nn.functional.cross_entropy(torch.ones(2, 3), torch.tensor([0, 7])), "num_classes"),
        (lambda: torch.ones(3).reshape(2), None),
        (deterministic(lambda: torch.ones(3).put_(torch.tensor([0, 0]), torch.ones(2))), "deterministic=false"),
    ],
)
def test_what_torch_says_of_a_configuration_is_told_with_a_remedy(call, words):
    known = remedy(raised(call))
    assert (known is None) == (words is None)
    assert known is None or (words in known[0] and known[1] is UserError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "batch_size"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), "snnexp resume"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "CUDA_LAUNCH_BLOCKING=1"),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "another device"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"), "batch_size"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"), "workers"),
        (OSError(24, "Too many open files"), "ulimit"),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "fewer workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "fewer workers"),
    ],
)
def test_what_a_larger_machine_would_not_say_is_a_run_that_failed(error, words):
    advice, kind = remedy(error)
    assert words in advice and kind is RunFailed


def test_a_gpu_used_before_a_deterministic_run_is_told_of():
    said = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
        "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS and you have CUDA "
        ">= 10.2. To enable deterministic behavior in this case, you must set an environment variable"
    )
    advice, kind = remedy(RuntimeError(said))
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment before Python starts" in advice and kind is UserError


def test_an_index_out_of_range_on_a_device_is_a_mistake_in_the_settings():
    advice, kind = remedy(torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be"))
    assert "device=cpu" in advice and kind is UserError


def test_the_traceback_of_a_loader_process_is_left_out():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\nValueError: x"
    assert first_words(RuntimeError(text)) == "ValueError: x"
