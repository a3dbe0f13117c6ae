"""Run as a program under TRITON_INTERPRET=1: compare the Triton form of the LIF, on CPU, with the C and the plain torch form, as JSON."""

import itertools
import json
import sys
from collections.abc import Iterator

import torch

from snnexp.models import lif_kernel, lif_triton, multi_step_lif
from snnexp.models.lif_kernel import SURROGATES
from snnexp.models.multi_step_lif import Dynamics

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = (2, 150)
"""Two blocks in fp32 and one in half precision, neither full."""


def cases() -> Iterator[tuple]:
    """Yield both charges, three resets, attached or detached, seven surrogates, two beginnings; the dtypes in turn."""
    starts = ((2.0, False), (1.7, True))
    every = itertools.product((True, False), (0.0, None, -0.3), (False, True), SURROGATES, starts)
    for k, (decay, reset, detach, name, (tau, begun)) in enumerate(every):
        alpha = {"Sigmoid": 4.0, "ATan": 2.0}.get(name, 1.0)
        yield DTYPES[k % 3], Dynamics(tau, decay, 1.0, reset, detach, name, alpha, strict=name == "ATan"), begun


def compare(T: int, dtype: torch.dtype, dynamics: Dynamics, begun: bool, seed: int) -> dict:
    """Return how many spikes and counts differ, and by how much the last membrane and the gradients of finite inputs do."""
    chance = torch.Generator().manual_seed(seed)
    x = (torch.randn(T, *SHAPE, generator=chance) * 1.5 + (1.0 if dynamics.decay_input else 0.3)).to(dtype)
    x[0, 0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    x[:, 1, :9] = 1.0  # ties with the threshold
    v = torch.randn(SHAPE, generator=chance) * 0.5 if begun else None
    g_spikes, g_last = torch.randn(T, *SHAPE, generator=chance).to(dtype), torch.randn(SHAPE, generator=chance)

    def run(form) -> tuple:
        inputs = [x.clone().requires_grad_(), None if v is None else v.clone().requires_grad_()]
        spikes, v_last, counts = form(*inputs)
        gradients = torch.autograd.grad([spikes, v_last], [each for each in inputs if each is not None], [g_spikes, g_last])
        return spikes.detach(), v_last.detach(), counts, *gradients

    def other(x, v):
        if dtype != torch.float16:
            return multi_step_lif.multi_step_lif(x, v, dynamics, count=True)
        counts = torch.zeros(T, dtype=torch.int64)  # the C form has no fp16
        return *multi_step_lif._MultiStepLIF.apply(x, v, dynamics, counts, None), counts

    ours = run(lambda x, v: lif_triton.lif(x, v, **vars(dynamics), count=True))
    theirs = run(other)
    finite = torch.isfinite(x).all(0)
    return {
        "case": f"{T} {dtype} {dynamics} {begun}",
        "dtype": str(dtype).removeprefix("torch."),
        "spikes": int((ours[0] != theirs[0]).sum()),
        "of": x.numel(),
        "counts": int((ours[2] != theirs[2]).sum()),
        "v_last": difference(ours[1], theirs[1]),
        "g_x": difference(ours[3][:, finite], theirs[3][:, finite]),
        "g_v": difference(ours[4][finite], theirs[4][finite]) if begun else 0.0,
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to entries above one; infinite if one alone is NaN somewhere."""
    a, b = a.double(), b.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    return float(torch.where(a == b, 0.0, (a - b).abs() / b.abs().clamp_min(1.0)).nan_to_num(0.0).max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    steps = [int(word) for word in sys.argv[1:]]
    assert lif_kernel.load() is not None, lif_kernel.reason()
    print(json.dumps([compare(steps[k // 3 % len(steps)], *case, seed=k) for k, case in enumerate(cases())]))
