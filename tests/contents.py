"""The content of a checkpoint that a run could have written, with the parts that a test wants."""

from typing import Any

import torch

from conftest import composed
from snnexp.engine.state import State, random_state


def content(**parts: Any) -> dict[str, Any]:
    """Return a small checkpoint of one weight, with these parts instead."""
    cpu = torch.device("cpu")
    return {
        "epoch": 3,
        "step": 6,
        "model": "vggsnn",
        "state_dict": {"weight": torch.ones(64, 64)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scheduler": {},
        "scaler": {},
        "ema": None,
        "args": composed("dataset=digits"),
        "state": State(epoch=3, step=6).as_dict(),
        "ranks": [{"random": random_state(cpu), "counts": {}}],
        "sampler": {"epoch": 3, "batch": 0, "samples": 0, "world": 1},
        "trackers": {},
        "data": {},
        "circumstances": {"precision": "fp32"},
        "pruned": {"kept": {}, "ratio": 0.0},
        **parts,
    }
