"""AdamW with 8-bit moments: it computes here, or says that it cannot."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

from snnexp.errors import UserError


def test_it_steps_as_adamw_does_to_within_8_bits():
    from snnexp.engine.optimizers import AdamW8bit

    torch.manual_seed(0)
    start, gradients = torch.randn(64, 128), [torch.randn(64, 128) for _ in range(4)]
    ends = {}
    for kind in (AdamW8bit, torch.optim.AdamW):
        weight = nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.01, betas=[0.9, 0.999], weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends[kind.__name__] = weight.detach()
        moments = [value.dtype for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor) and value.numel() == 8192]
        assert (torch.uint8 in moments) == (kind is AdamW8bit)
    moved = (ends["AdamW"] - start).abs().mean()
    assert (ends["AdamW8bit"] - ends["AdamW"]).abs().mean() < 0.05 * moved


def test_small_tensors_keep_their_moments_in_32_bits():
    from snnexp.engine.optimizers import AdamW8bit

    weight = nn.Parameter(torch.ones(10))
    optimizer = AdamW8bit([weight])
    weight.grad = torch.ones(10)
    optimizer.step()
    assert all(value.dtype == torch.float32 for value in optimizer.state[weight].values() if getattr(value, "numel", int)() == 10)


def test_without_bitsandbytes_it_says_so(monkeypatch):
    before = sys.modules.pop("snnexp.engine.optimizers", None)
    broken = types.ModuleType("bitsandbytes.optim")  # as a wrong build shows itself: the module is there, the class is not
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", broken)
    try:
        with pytest.raises(UserError, match="optimizer=adamw8bit: bitsandbytes cannot be loaded here .* Use optimizer=adamw"):
            importlib.import_module("snnexp.engine.optimizers")
    finally:
        sys.modules.pop("snnexp.engine.optimizers", None)
        if before is not None:
            sys.modules["snnexp.engine.optimizers"] = before


def test_where_bitsandbytes_cannot_compute_it_says_so(monkeypatch):
    from snnexp.engine import optimizers

    def fail(self: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(optimizers._AdamW8bit, "step", fail)
    with pytest.raises(UserError, match="bitsandbytes cannot compute on cpu .no kernel image"):
        optimizers.AdamW8bit([nn.Parameter(torch.ones(3))])


def test_it_steps_as_bitsandbytes_does_without_waiting_for_the_device(monkeypatch):
    from bitsandbytes.optim import optimizer as of_bitsandbytes

    from snnexp.engine import optimizers

    waits: list[torch.Tensor] = []
    monkeypatch.setattr(of_bitsandbytes, "sync_gpu", waits.append)
    ends, counted = [], []
    for kind in (optimizers.AdamW8bit, optimizers._AdamW8bit):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(size)) for size in (4096, 9000, 10, 3)]
        groups = [{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.0}]
        optimizer = kind(groups, lr=0.01, betas=(0.9, 0.999))
        waits.clear()
        for _ in range(3):
            for weight in weights[:3]:  # the last one has no gradient
                weight.grad = torch.randn(len(weight))
            assert optimizer.step(lambda: torch.is_grad_enabled()) is True
        moments = [value for weight in weights for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
        ends.append([*weights, *moments])
        counted.append(len(waits))
    assert counted == [0, 9]
    assert len(ends[0]) == len(ends[1]) == 4 + 2 * 6 + 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))
