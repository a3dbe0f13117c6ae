"""SetVAE and SeqSetVAE: parameter counts, one stay or many, order, time's arrow, what is fixed."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.models.seqset_vae.attention import attend
from snnexp.models.seqset_vae.latest_values import latest_values
from snnexp.models.seqset_vae.seqset_vae import SeqSetVAE
from snnexp.models.seqset_vae.set_vae import SetVAE, fixed_points, variable_codes
from snnexp.models.seqset_vae.statistics import StatisticsHeads, statistics_of
from stays import batch_of, made_stays, places_of

DESCRIBED = {"width": 256, "heads": 2, "inducing": 16, "levels": 2, "decoder_layers": 2}
SMALL = {"num_variables": 7, "width": 16, "heads": 2, "inducing": 3}
PUBLISHED = {"residual": False, "events": "scaled", "decoder": "tanh", "decoder_layers": 2}
either_form = pytest.mark.parametrize("form", [{}, PUBLISHED], ids=["ours", "published"])


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def statistics_one_by_one(stays, variables):
    """The statistics of stays, [N, V, 10], each looked up in its lists of sets."""
    rows = []
    for stay in stays:
        for variable in range(variables):
            by_set = [found for events in stay if (found := [value for number, value in events if number == variable])]
            values = [value for found in by_set for value in found]
            last = sum(by_set[-1]) / len(by_set[-1]) if by_set else 0
            four = [sum(values) / len(values), min(values), max(values), last] if values else [0] * 4
            rows.append([*four, *(min(x * x, 6) for x in four), math.log(1 + len(values)), float(bool(values))])
    return torch.tensor(rows).view(len(stays), variables, 10)


def small(**options):
    torch.manual_seed(0)
    model = SeqSetVAE(**SMALL, **options).eval()
    torch.nn.init.normal_(model.of_place)  # 0 at first
    return model


def test_parameters_of_the_described_system():
    with torch.device("meta"):
        text = torch.empty(41, 768)
        set_vae = SetVAE(num_variables=41, embeddings=text, **DESCRIBED)
        whole = SeqSetVAE(num_variables=41, embeddings=text, feed_forward=256, context_decoder=True, **DESCRIBED)
    assert parameters(set_vae) == 5_946_880
    assert parameters(whole) == 10_157_826
    parts = {
        "names": 196_864, "encoder": 2_116_608, "to_posterior": 197_888, "decoder.out": 65_792,
    }  # fmt: skip
    assert {name: parameters(set_vae.get_submodule(name)) for name in parts} == parts
    assert parameters(set_vae.decoder) - 65_792 == 3_303_424
    of_whole = {"of_minute": 16_768, "transformer": 791_552, "decoder": 3_369_216, "head": 33_154}
    assert {name: parameters(whole.get_submodule(name)) for name in of_whole} == of_whole
    assert whole.of_place.numel() == 256


def test_a_learned_table_takes_the_place_of_embeddings():
    table, text = SetVAE(**SMALL), SetVAE(**SMALL, embeddings=torch.ones(7, 5))
    assert (parameters(table.names), parameters(text.names)) == (7 * 16, 6 * 16)
    assert "embeddings" in text.state_dict()  # frozen, and kept with the weights


def test_attention_of_sets_of_unlike_sizes_is_that_of_each_set_alone():
    torch.manual_seed(0)
    sets, heads = SimpleNamespace(runs=[(1, 2), (2, 1), (4, 3)]), 2
    q, k, v = torch.randn(3, 16, 8, dtype=torch.float64)
    summary = torch.randn(6, 3, 8, dtype=torch.float64)
    mixed, to_summary = attend(q, k, v, sets, heads), attend(summary, k, v, sets, heads)
    from_summary = attend(q, summary, summary, sets, heads)
    start = 0
    sizes = [n for n, count in sets.runs for _ in range(count)]
    for number, n in enumerate(sizes):
        own = slice(start, start + n)
        start += n
        for head in range(heads):
            c = slice(4 * head, 4 * head + 4)

            def by_hand(a, b, values):
                return (a @ b.T / math.sqrt(4)).softmax(1) @ values

            torch.testing.assert_close(mixed[own, c], by_hand(q[own, c], k[own, c], v[own, c]))
            torch.testing.assert_close(from_summary[own, c], by_hand(q[own, c], summary[number, :, c], summary[number, :, c]))
            torch.testing.assert_close(to_summary[number, :, c], by_hand(summary[number, :, c], k[own, c], v[own, c]))


@torch.no_grad()
@either_form
def test_a_stay_alone_gives_what_it_gives_among_others(form):
    model, stays = small(context_decoder=True, latest=True, statistics=True, **form), made_stays(12, 7)
    many = batch_of(stays)
    together, rows = model(many), places_of(many)
    ends = torch.tensor([n * k for n, k in many.runs]).cumsum(0)
    for n, stay in enumerate(stays):
        alone = batch_of([stay])
        coded = model(alone)
        order = [rows[n, place] for place in alone.place.tolist()]
        torch.testing.assert_close(coded.mu, together.mu[:, order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(coded.logvar, together.logvar[:, order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(coded.logits[0], together.logits[n], atol=1e-5, rtol=1e-5)
        sizes = torch.repeat_interleave(*torch.tensor(many.runs).T)
        starts = sizes.cumsum(0) - sizes
        events = torch.cat([torch.arange(starts[row], starts[row] + sizes[row]) for row in order])
        for one, all_of_them in zip(coded.decoded, together.decoded, strict=True):
            torch.testing.assert_close(one, all_of_them[events], atol=1e-5, rtol=1e-5)
    assert ends[-1] == len(many.variable)


@torch.no_grad()
def test_the_order_within_a_set_means_nothing():
    model, stays = small(latest=True, statistics=True), made_stays(6, 7)
    other = [[events[::-1] for events in stay] for stay in stays]
    one, two = model(batch_of(stays)), model(batch_of(other))
    torch.testing.assert_close(one.mu, two.mu, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.decoded[0], two.decoded[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.logits, two.logits, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_state_never_sees_what_comes_after_it():
    model, stays = small(context_decoder=True, latest=True), made_stays(5, 7, longest=8)
    changed = [[*stay[:2], *([[(3, 4.0), (1, -4.0)]] * (len(stay) - 2))] for stay in stays]
    minutes = [[0.0, 60.0] + [1000.0 + place for place in range(len(stay) - 2)] for stay in stays]
    states = []
    for batch in (batch_of(stays), batch_of(changed, [m[: len(stay)] for m, stay in zip(minutes, stays, strict=True)])):
        coded = model(batch)
        all_states, rows = model.states(coded.mu.mean(0), batch), places_of(batch)
        states.append(torch.stack([all_states[rows[n, place]] for n, stay in enumerate(stays) for place in range(min(2, len(stay)))]))
    torch.testing.assert_close(*states, atol=1e-6, rtol=1e-5)
    longer = model(batch_of([stay for stay in stays if len(stay) > 2]))
    other = model(batch_of([stay for stay in changed if len(stay) > 2]))
    assert not torch.allclose(longer.logits, other.logits)  # the head does see them


def test_evaluation_is_deterministic_and_draws_nothing():
    model, batch = small(), batch_of(made_stays(4, 7))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = model(batch), model(batch)
    assert torch.equal(one.decoded[0], two.decoded[0]) and torch.equal(one.z, one.mu)
    assert torch.equal(torch.get_rng_state(), before)
    model.train()
    assert not torch.equal(model(batch).z, model(batch).z)


def test_a_draw_has_the_spread_that_the_posterior_says():
    model = small().train()
    batch = batch_of([[[(1, 0.5)]]] * 4000)
    coded = model.set_vae(batch)
    assert torch.allclose(coded.z.std(1), (0.5 * coded.logvar).exp().mean(1), rtol=0.08)
    assert torch.equal(model.posterior[0], coded.mu) and not model.posterior[0].requires_grad


def test_what_is_to_be_reconstructed_does_not_move():
    model, batch = small().set_vae, batch_of([[[(2, 1.5), (0, -0.25)]]])
    target = model.target(batch)
    assert not target.requires_grad
    torch.testing.assert_close(target[:, -1], torch.tensor([1.5, -0.25]))
    torch.testing.assert_close(target[:, :-1], model.codes[[2, 0]])
    codes = variable_codes(7, 15)
    torch.testing.assert_close(codes @ codes.T, torch.eye(7), atol=1e-6, rtol=0)
    assert torch.equal(codes, variable_codes(7, 15)) and variable_codes(20, 15).norm(dim=1).allclose(torch.ones(20))


def test_an_event_of_the_value_0_still_names_its_variable():
    model = small().set_vae
    events = model.events(batch_of([[[(0, 0.0), (1, 0.0)]]]))
    assert not torch.allclose(events[0], events[1])
    half = model.width // 2
    names = F.normalize(model.names.weight, dim=-1) * math.sqrt(model.width)
    twice = model.events(batch_of([[[(0, 2.0)]]]))
    torch.testing.assert_close(twice[0], torch.cat([names[0, :half], 2 * names[0, half:]]))


def test_what_is_computed_takes_no_memory_where_only_shapes_are_wanted():
    with torch.device("meta"):
        assert variable_codes(10**12, 31).shape == (10**12, 31) and fixed_points(64, 10**9).is_meta
        assert SetVAE(num_variables=10**12, width=32).codes.shape == (10**12, 31)


def test_fixed_points_are_normal_and_the_same_however_many():
    points = fixed_points(512, 16)
    torch.testing.assert_close(points[:40], fixed_points(40, 16))
    assert points.mean(0).abs().max() < 0.05 and (points.std(0) - 1).abs().max() < 0.05
    large = [[[(0, float(i)) for i in range(100)]]]  # more events than there are points at first
    model = small()
    assert model(batch_of(large)).decoded[0].shape == (100, 16)
    assert "points" not in {name.rpartition(".")[2] for name, _ in model.named_buffers()}  # which ranks with other sets would overwrite


def test_statistics_of_a_stay_are_those_that_its_sets_have():
    stays = made_stays(9, 7)
    stays[2][-1] = [(3, 1.5), (3, -0.5), (3, 5.0)]  # several values at the last time
    torch.testing.assert_close(statistics_of(batch_of(stays), 7), statistics_one_by_one(stays, 7))


def test_the_latest_values_of_a_set_are_those_of_the_sets_so_far():
    stays = made_stays(9, 7)
    stays[2][-1] = [(3, 1.5), (3, -0.5)]  # two values in a set
    batch = batch_of(stays)
    latest, measured = latest_values(batch, 7)
    for (n, place), row in places_of(batch).items():
        wanted = torch.zeros(7)
        for events in stays[n][: place + 1]:
            for variable in {variable for variable, _ in events}:
                values = [value for number, value in events if number == variable]
                wanted[variable] = sum(values) / len(values)
        torch.testing.assert_close(latest[row], wanted)
        assert measured[row].tolist() == [float(variable in {number for number, _ in stays[n][place]}) for variable in range(7)]


def test_statistics_are_standardised_by_what_training_has_seen():
    stays = made_stays(24, 7)
    head = StatisticsHeads(7, 2, 0.0)
    for first in range(0, 24, 8):
        head(batch_of(stays[first : first + 8]))
    of_all = statistics_one_by_one(stays, 7)
    torch.testing.assert_close(head.mean, of_all.mean(0))
    torch.testing.assert_close(head.square, of_all.square().mean(0))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    seen = []
    for layer in (head.enter, head.linear):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].view(24, 7, 10)))
    head.eval()(batch_of(stays))
    for standard in seen:
        torch.testing.assert_close(standard, (of_all - of_all.mean(0)) / of_all.std(0, correction=0).clamp(min=0.1))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())  # evaluation learns nothing


@torch.no_grad()
def test_the_logits_are_the_mean_of_the_heads_and_one_head_is_as_before():
    batch, many, one = batch_of(made_stays(5, 7)), small(statistics=True), small()
    one.load_state_dict({name: value for name, value in many.state_dict().items() if not name.startswith("statistics.")})
    coded, alone = many(batch), one(batch)
    of_states, linear, *members = coded.heads
    assert len(members) == 4 and len({tuple(member.flatten().tolist()) for member in members}) == 4
    torch.testing.assert_close(coded.logits, (of_states + linear + sum(members) / 4) / 3)
    assert torch.equal(alone.logits, coded.heads[0]) and len(alone.heads) == 1


@either_form
def test_every_parameter_has_a_gradient(form):
    model, batch = small(context_decoder=True, latest=True, statistics=True, **form).train(), batch_of(made_stays(6, 7))
    coded = model(batch)
    (sum(decoded.square().mean() for decoded in coded.decoded) + coded.logits.sum() + coded.logvar.mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_as_published_an_event_is_its_variable_times_its_value_and_so_is_what_it_is_to_become():
    model, batch = small(**PUBLISHED), batch_of([[[(3, 2.0), (1, -0.5)], [(3, 0.0)]]])
    assert sorted(model.set_vae.events(batch).norm(dim=1).tolist()) == pytest.approx([0.0, 0.5, 2.0])
    coded = model(batch)
    assert torch.equal(coded.target, model.set_vae.events(batch)) and coded.decoded[0].abs().max() < 1


@torch.no_grad()
@either_form
def test_in_fp64_it_is_the_same_model(form):
    model, batch = small(context_decoder=True, latest=True, statistics=True, **form), batch_of(made_stays(6, 7))
    coded = model(batch)
    exact = model.double()(batch)
    assert exact.logits.dtype == exact.mu.dtype == exact.decoded[0].dtype == exact.decoded[1].dtype == torch.float64
    torch.testing.assert_close(exact.logits.float(), coded.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exact.decoded[1].float(), coded.decoded[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 15}, "model.width=15"),
        ({"heads": 3}, "heads=3"),
        ({"inducing": 0}, "inducing=0"),
        ({"events": "scale"}, "model.events: 'scale' is not known; allowed: split, scaled. Did you mean 'scaled'"),
        ({"decoder": "mlp"}, "model.decoder: 'mlp' is not known; allowed: linear, tanh"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SetVAE(**SMALL | options)
    with pytest.raises(UserError, match=r"model\.dropout=1\.0"):
        SeqSetVAE(**SMALL, dropout=1.0)
    with pytest.raises(UserError, match=r"model\.statistics_dropout=-0\.1"):
        SeqSetVAE(**SMALL, statistics_dropout=-0.1)
