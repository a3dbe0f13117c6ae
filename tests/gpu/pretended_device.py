"""A CUDA device that is not there. A process that has it preloaded takes CUDA's ways through torch, with tensors that have no content."""

import math
import os
import re
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.cuda.amp.common
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager, unset_fake_temporarily
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

from models.fake_cuda import ASKING

HERE = Path(__file__).parent

OURS = re.compile("/snnexp/|/torch_geometric/")

NOTHING_TO_DO = {"detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided", "_unsafe_view"}
"""Operations that start no kernel, beside those whose result is a view."""


def lacking() -> str:
    """Return what is lacking here to pretend a device, or ""."""
    if torch.version.cuda is None:
        return "torch was installed without CUDA"
    if shutil.which("cc") is None:
        return "there is no C compiler (cc)"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "torch was installed without Triton"
    return ""


def environment(folder: Path) -> dict[str, str]:
    """Compile the device into `folder`, and return the environment of a process that has it."""
    library = folder / "libcuda.so.1"  # whoever asks for the driver of this name gets what is loaded already
    source = HERE / "pretended_device.c"
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(source), "-o", str(library)], check=True)
    return os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}


def pretend() -> None:
    """Answer what torch and Triton would ask a driver for, in this process and for good; a device of compute capability 9.0 is there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    torch.cuda.is_available = lambda: False  # nobody shall start CUDA
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.max_memory_allocated = lambda *_: 0
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.backends.cudnn.enabled = False  # its sampling along a flow has no form without content; PyTorch's own has
    torch._C._select_conv_backend = lambda *_, **__: 0
    torch._C._conv_determine_backend_memory_format = _format_of_convolution
    optimizer._foreach_supported_types.append(FakeTensor)
    _foreach_utils._foreach_supported_types.append(FakeTensor)
    FakeTensor.tolist = _tolist(FakeTensor.tolist)
    FakeTensor.numpy = lambda tensor: np.zeros(tensor.shape)  # of a copy that has arrived: all is finite, nothing is due
    event = SimpleNamespace(synchronize=lambda: None)  # of the step before, whose work is done while the host does that of the next
    torch.cuda.current_stream = lambda *_: SimpleNamespace(record_event=lambda: event)
    torch.tensor = _without_pinning(torch.tensor)
    F.scaled_dot_product_attention = _attention(F.scaled_dot_product_attention)


def _format_of_convolution(x: Tensor, weight: Tensor, _backend: int) -> torch.memory_format:
    last = torch.channels_last
    wanted = x.dim() == 4 and (x.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last))
    return last if wanted else torch.contiguous_format


def _attention(on_cpu: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an attention that takes a fused kernel on CUDA, where torch would ask the driver which one suits the device."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **rest
    ):
        if q.device.type != "cuda":
            return on_cpu(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **rest)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            q, k, v, attn_mask = (part if part is None else part.to(dtype) for part in (q, k, v, attn_mask))
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2])
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, **rest)[0]

    return attention


def _without_pinning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a `torch.tensor` whose memory is not pinned, which a driver would have to do."""
    return lambda *values, pin_memory=False, **how: make(*values, **how)


def _tolist(of_cpu: Callable[[Tensor], list]) -> Callable[[Tensor], list]:
    """Return a `tolist` that brings a tensor to the host once, as torch does, and not number by number."""
    return lambda tensor: of_cpu(tensor.cpu())


class Device(TorchDispatchMode):
    """Counts what is asked of the pretended device: kernels, waits of the host (with their places), bytes that are kept for the backward.

    A kernel is an operation that starts one or more; `traffic` is the bytes of what they read and write, each tensor once. `grids` holds
    the largest second or third dimension of the grid of a fused attention, and the largest first one of a LIF kernel. A number that the
    host reads is 1, and what is selected by values of the device is all.
    """

    def __init__(self, tensors: FakeTensorMode) -> None:
        super().__init__()
        self.tensors, self.constants = tensors, set()
        self.starts_kernel: dict[Any, bool] = {}
        self.reset()

    def reset(self) -> None:
        """Start to count anew."""
        self.kernels, self.traffic, self.waits, self.grids = 0, 0, [], {"attention": 0, "lif": 0}
        self.saved: dict[Any, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd keeps, unless it is a weight or another constant."""
        for part in _dense_parts(tensor):
            storage = part.untyped_storage()
            if _kind(part) == "cuda" and storage._cdata not in self.constants:
                self.saved[storage] = storage.nbytes()
        return tensor

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Count within the context; what `model` holds is constant."""
        self.constants = {held.untyped_storage()._cdata for held in (*model.parameters(), *model.buffers())}
        with saved_tensors_hooks(self.keep, lambda tensor: tensor), self:
            yield

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.prim.device.default:
            return _device(args[0])
        kwargs, name = kwargs or {}, op._schema.name.partition("::")[2]
        if name in ASKING or name.startswith(("index", "sparse_", "mm")):
            args, answer = self.without_content(op, name, args, kwargs)
            if answer is not None:
                return answer
        result = op(*args, **kwargs)
        tensors = list(_tensors((*args, *kwargs.values(), result)))
        kinds = {_kind(tensor) for tensor in tensors}
        if "cuda" in kinds:
            if op not in self.starts_kernel:
                view = any(value.alias_info and not value.alias_info.is_write for value in op._schema.returns)
                self.starts_kernel[op] = not view and name not in NOTHING_TO_DO
            if self.starts_kernel[op]:
                self.count(tensors)
            if name in ("_to_copy", "copy_") and len(kinds) == 2 and not (kwargs.get("non_blocking") or True in args[2:]):
                self.wait("a copy between host and device")
            elif "attention" in name:
                self.grids["attention"] = max(self.grids["attention"], *args[1].shape[:2])
            elif op.namespace == "snnexp" and name.startswith("lif"):
                from snnexp.models.lif_triton import backward_block  # needs Triton

                x = args[0]
                self.grids["lif"] = max(self.grids["lif"], -(-x[0].numel() // backward_block(len(x), x.dtype)))
        return result

    def without_content(self, op: Any, name: str, args: tuple, kwargs: dict) -> tuple[tuple, Any]:
        """Return the arguments of an operation and, where it has no form for tensors without content, the result."""
        first = args[0]
        if name == "_local_scalar_dense" and isinstance(first, FakeTensor):
            if _kind(first) == "cuda":
                self.wait("a number is read")
            return args, 1.0 if first.is_floating_point() else 1
        if _kind(first) != "cuda":
            return args, None
        if name in ASKING:
            self.wait(name)
            sizes = {"nonzero": (first.numel(), first.dim()), "masked_select": (first.numel(),)}
            return args, first.new_empty(sizes[name], dtype=torch.int64 if name == "nonzero" else first.dtype) if name in sizes else None
        if name in ("index", "index_put", "index_put_"):
            chosen: list[Tensor | None] = []
            for index in args[1]:
                if index is not None and index.dtype == torch.bool:
                    self.wait("a selection by a condition")
                    chosen += [torch.empty(index.numel(), dtype=torch.int64, device=index.device)] * index.dim()
                else:
                    chosen.append(index)
            return (first, chosen, *args[2:]), None
        if name.startswith("sparse_") and name.endswith("_tensor"):
            with in_kernel_invocation_manager(self.tensors):
                held = op(*args, **(kwargs | {"device": "meta"}))
            return args, FakeTensor(self.tensors, held, first.fake_device)
        if name == "mm" and first.layout != torch.strided:
            product = args[1].new_empty(first.shape[0], args[1].shape[1])
            self.count([first, args[1], product])
            return args, product
        return args, None

    def count(self, tensors: list[Tensor]) -> None:
        """Count a kernel that reads or writes these tensors."""
        self.kernels += 1
        parts = (part for tensor in {id(tensor): tensor for tensor in tensors}.values() for part in _dense_parts(tensor))
        self.traffic += sum(map(_bytes, parts))

    def wait(self, reason: str) -> None:
        """Note that the host waits for the device, and where."""
        self.waits.append(f"{reason} ({place()})")


def place(error: BaseException | None = None) -> str:
    """Return the lines of snnexp and PyG, the innermost first, from which this is called, or in which an error was raised."""
    frames = traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    ours = [Path(frame.filename).name + f":{frame.lineno}" for frame in frames if OURS.search(frame.filename)]
    return " < ".join(reversed(ours[-3:]))


def failure(error: Exception) -> str:
    """Return an error in one line, with its place in snnexp."""
    said, where = f"{type(error).__name__}: {error}".splitlines()[0], place(error)
    return f"{said} ({where})" if where else said


def _device(tensor: Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _kind(tensor: Tensor) -> str:
    return _device(tensor).type


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout == torch.sparse_csc:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes that a dense tensor takes in memory; those along an expanded side are the same."""
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride) * tensor.element_size()


def _tensors(parts: Iterable) -> Iterator[Tensor]:
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, list | tuple):
            yield from _tensors(part)


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, whose tensors have content."""

    def with_content(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return with_content
