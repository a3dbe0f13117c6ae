"""Sets filled up to one size: the same numbers, as many operations for any sizes, and one graph for the compiler."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from models.fake_cuda import Waits, put_on_fake_cuda, waits
from snnexp.models.seqset_vae import set_vae
from snnexp.models.seqset_vae.padding import Padded, padded_if_better
from snnexp.models.seqset_vae.seqset_vae import SeqSetVAE
from snnexp.tasks.chamfer import chamfer
from snnexp.tasks.set_vae import StayOutcome
from stays import batch_of, made_stays

PUBLISHED = {"residual": False, "events": "scaled", "decoder": "tanh", "decoder_layers": 2}
either_form = pytest.mark.parametrize("form", [{}, PUBLISHED], ids=["ours", "published"])


def model_of(form):
    torch.manual_seed(0)
    return SeqSetVAE(num_variables=7, width=16, heads=2, inducing=3, context_decoder=True, latest=True, statistics=True, **form)


def test_places_by_hand():
    batch = batch_of([[[(0, 1.0)], [(1, 2.0), (2, 3.0), (3, 4.0)]], [[(4, 5.0)]]])
    padded = Padded(batch, 5)
    assert padded.inside.int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert (padded.owner.tolist(), padded.place.tolist()) == ([0, 1, 2, 2, 2], [0, 0, 0, 1, 2])
    x = torch.arange(5.0).unsqueeze(1)
    assert padded.pad(x)[padded.inside].flatten().tolist() == [0, 1, 2, 3, 4] == padded.unpad(padded.pad(x)).flatten().tolist()
    assert padded.mean(x).flatten().tolist() == [0, 1, 3]


@either_form
def test_loss_and_gradients_are_those_of_sets_as_they_are(form, monkeypatch):
    model, batch, y = model_of(form).double(), batch_of(made_stays(6, 7)), torch.tensor([0, 1, 1, 0, 0, 1])
    batch.value, batch.minute, found = batch.value.double(), batch.minute.double(), []
    for choose in (padded_if_better, lambda sets, x: Padded(sets, len(x))):
        monkeypatch.setattr(set_vae, "padded_if_better", choose)
        torch.manual_seed(1)
        model.zero_grad()
        loss, _ = StayOutcome(beta_steps=0).loss(model, (batch, y), 0)
        loss.backward()
        found.append([loss.detach(), model.posterior[0], *(p.grad for p in model.parameters())])
        model.load_state_dict(model_of(form).state_dict())  # the running statistics as before
    for as_they_are, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, as_they_are, rtol=1e-7, atol=1e-9)


def test_the_distance_of_equal_sets_has_no_gradient_that_is_nan():
    batch = batch_of(made_stays(3, 7))
    true = torch.randn(len(batch.value), 4)
    decoded = true.clone().requires_grad_()
    distances = chamfer(decoded, true, Padded(batch, len(true)))
    distances.sum().backward()
    assert distances.max() < 1e-4 and decoded.grad.isfinite().all()
    torch.testing.assert_close(chamfer(decoded + 1, true, Padded(batch, len(true))), chamfer(decoded + 1, true, batch))


@pytest.mark.parametrize(("form", "batches"), [({}, 4), (PUBLISHED, 1)], ids=["ours", "published"])
def test_the_compiler_makes_one_graph_without_a_break(form, batches):
    torch._dynamo.reset()
    model, counter = model_of(form).eval(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for seed in range(batches):  # stays, sets and events differ in number, and so do the sizes of the sets
        batch = batch_of(made_stays(3 + seed, 7, seed, longest=5 + seed))
        with torch.no_grad():
            expected, found = model(batch), compiled(batch)
        for name in ("mu", "logits", "target"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
        for one, other in zip(found.decoded, expected.decoded, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 3  # of fixed sizes, then of any
    torch._dynamo.reset()


def operations(stays):
    """How many operations a forward pass with the loss takes on CUDA, and which sets the model saw."""
    batch, model = batch_of(stays), model_of({})
    with waits():
        y = torch.zeros(len(stays), dtype=torch.int64, device="cuda")
        model, batch = put_on_fake_cuda(model), batch.to("cuda")
        StayOutcome().loss(model, (batch, y), 0)
        with Waits() as mode:
            StayOutcome().loss(model, (batch, y), 0)
        return mode.count, type(model.set_vae(batch).sets)


def test_the_number_of_operations_does_not_depend_on_the_sizes(monkeypatch):
    two, twelve = ([[[(0, 1.0)] * n for n in range(1, 1 + sizes)]] for sizes in (2, 12))
    (of_two, kind), (of_twelve, _) = map(operations, (two, twelve))
    assert kind is Padded and of_two == of_twelve
    monkeypatch.setattr(set_vae, "padded_if_better", lambda sets, x: sets)
    assert operations(twelve)[0] > 2 * of_twelve


def test_sets_are_left_as_they_are_where_padding_would_take_the_memory_and_on_the_cpu():
    many = batch_of([[[(0, 1.0)] * 400, *[[(0, 1.0)]] * 400]])
    few = batch_of([[[(0, 1.0)] * 3, *[[(0, 1.0)]] * 5]])
    with waits():
        assert padded_if_better(many, torch.empty(800, device="cuda")) is many
        assert isinstance(padded_if_better(few.to("cuda"), torch.empty(8, device="cuda")), Padded)
    assert padded_if_better(few, few.value) is few
