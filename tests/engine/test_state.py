"""What must survive a restart."""

import random

import numpy as np
import torch

from contents import content
from snnexp.engine import checkpoint
from snnexp.engine.state import State, random_state, restore_random_state, seed_everything

CPU = torch.device("cpu")


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item(), torch.randn(()).item()]


def test_the_random_state_comes_back_through_a_checkpoint_file(tmp_path):
    seed_everything(3, rank=0)
    random.gauss(0, 1), np.random.randn()  # each keeps a second normal number for the next call
    saved = content() | {"ranks": [{"random": random_state(CPU), "counts": {}}]}
    expected = [draw(), draw()]
    checkpoint.save(tmp_path / "a.pth", saved)
    seed_everything(99, rank=1)
    restore_random_state(checkpoint.load(tmp_path / "a.pth")["ranks"][0]["random"], CPU)
    assert [draw(), draw()] == expected


def test_ranks_draw_differently_and_seeds_repeat():
    draws = []
    for seed, rank in ((5, 0), (5, 1), (5, 0), (2**63 - 1, 0)):
        seed_everything(seed, rank)
        draws.append(draw())
    assert draws[0] == draws[2] and len({tuple(d) for d in draws}) == 3


def test_a_state_goes_through_plain_values():
    state = State(epoch=2, step=7, best={"epoch": 1, "metric": "Val/Acc1", "value": 50.0}, ranking=[[50.0, 1]])
    state.counts["n"] = torch.ones(())
    plain = state.as_dict()
    assert "counts" not in plain and "_mark" not in plain
    again = State(**plain)
    assert (again.epoch, again.step, again.best, again.ranking) == (2, 7, state.best, [[50.0, 1]])
    assert again.as_dict()["wall_seconds"] >= plain["wall_seconds"] >= 0
