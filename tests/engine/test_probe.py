"""A look at held-out samples in the midst of training leaves no trace in it."""

import pytest
import torch

from conftest import STAYS
from snnexp.engine import loop
from snnexp.engine.probe import ValidationProbe
from snnexp.engine.signals import StopFlag
from snnexp.errors import RunFailed


def test_a_look_changes_nothing_and_sees_the_same_each_time(make):
    x = make(base=STAYS)
    probe = ValidationProbe(x.model, x.task, x.data, 8, x.ranks.device, x.precision)
    x.model.train()
    before = torch.get_rng_state()
    first, again = list(probe()), list(probe())
    assert torch.equal(torch.get_rng_state(), before) and x.model.training
    for (mu, logvar, terms), (mu2, _, _) in zip(first, again, strict=True):
        assert torch.equal(mu, mu2) and mu.shape == logvar.shape and not mu.requires_grad and terms["Beta"] == x.task.beta
    assert sum(mu.shape[1] for mu, _, _ in first) == x.data.lengths("val").sum()


def test_a_collapse_ends_the_run_that_asked_for_it(make):
    collapsing = [
        "tracker=posterior",
        "tracker.posterior.update_every=3",
        "tracker.posterior.window=4",
        "task.beta=50",
        "task.beta_steps=0",
        "lr=0.01",
        "tracker.posterior.stop_on_collapse=true",
        "epochs=40",
    ]
    x = make(*collapsing, base=STAYS)
    with pytest.raises(RunFailed, match="collapse(.|\n)*task.beta"):
        loop.train(x, StopFlag())
    assert x.run.checkpoint("error").exists()
