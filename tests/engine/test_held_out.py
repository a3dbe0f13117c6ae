"""A look at held-out samples in the midst of training leaves no trace in it."""

import torch

from conftest import STAYS
from snnexp.engine.held_out import HeldOut


def test_a_look_changes_nothing_and_sees_the_same_each_time(make):
    x = make(base=STAYS)
    probe = HeldOut(x.model, x.task, x.data, 8, x.ranks.device, x.precision)
    x.model.train()
    before = torch.get_rng_state()
    first, again = list(probe()), list(probe())
    assert torch.equal(torch.get_rng_state(), before) and x.model.training
    for (mu, logvar, terms), (mu2, _, _) in zip(first, again, strict=True):
        assert torch.equal(mu, mu2) and mu.shape == logvar.shape and not mu.requires_grad and terms["Beta"] == x.task.beta
    assert sum(mu.shape[1] for mu, _, _ in first) == x.data.lengths("val").sum()
