"""The numbers of a posterior: formulas by hand, the constants of the field, a mutual information that is known."""

import math

import pytest
import torch
from torch import Tensor

from snnexp.trackers.posterior import measures

OPTIONS = {"active_threshold": 0.01, "delta": 0.05}


def posterior(spread: float, variance: float, M: int = 2000, D: int = 8, L: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """mu ~ N(0, spread^2) over the data, the same variance everywhere."""
    mu = spread * torch.randn(L, M, D, generator=torch.Generator().manual_seed(seed))
    return mu, torch.full((L, M, D), math.log(variance))


def summary(mu: Tensor, logvar: Tensor, epsilon: float = 0.01, **options) -> dict:
    return measures.summary(measures.sums(mu, logvar, epsilon), mu.shape[1], **OPTIONS | options)


def legacy(mu: Tensor, logvar: Tensor) -> dict:
    return measures.legacy_statistics(measures.sums(mu, logvar, 0.01), mu.shape[1])


def test_divergence_is_that_of_two_normal_distributions():
    mu, logvar = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(0, 1))
    torch.testing.assert_close(measures.divergence(mu, logvar), expected, rtol=1e-4, atol=1e-5)
    assert measures.divergence(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])).tolist() == pytest.approx(
        [0, 2, 0.5 * (math.e - 2)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_by_hand(dtype):
    # Two levels of one unit, four samples. Level 0: mu 0, 0, 0, 2 and variance 1: KL 0, 0, 0, 2. Level 1: mu 1, variance e.
    mu = torch.tensor([[[0.0], [0.0], [0.0], [2.0]], [[1.0]] * 4], dtype=dtype)
    logvar = torch.tensor([[[0.0]] * 4, [[1.0]] * 4], dtype=dtype)
    block = summary(mu, logvar, reconstruction=7.0, information=(0.5, [0.25, 0.125]))
    first, second = block.pop("levels")
    constant = 0.5 * (math.e + 1 - 1 - 1)
    assert block == {
        "sets": 4,
        "kl": pytest.approx(0.5 + constant),
        "reconstruction": 7.0,
        "active_units": 0.5,  # the mean's variance is 0.75 in level 0, divided by the number of samples; 0 in level 1
        "collapsed_units": 0.0,  # KL < 0.01 in three of four samples of level 0, in none of level 1
        "mutual_information": 0.5,
        "variance": pytest.approx((1 + math.e) / 2),
    }
    assert first["kl_per_dim"] == pytest.approx([0.5]) and first["mean_variance_per_dim"] == pytest.approx([0.75])
    assert second["kl_per_dim"] == pytest.approx([constant]) and second["mean_variance_per_dim"] == pytest.approx([0], abs=1e-6)
    assert (first["active_units"], second["active_units"], first["mutual_information"], second["mutual_information"]) == (1, 0, 0.25, 0.125)
    assert summary(mu, logvar, delta=0.25)["levels"][0]["collapsed_units"] == 1, "three of four are 1 - delta of them"


def test_collapsed_is_at_least_one_minus_delta_of_the_samples():
    mu = torch.zeros(1, 100, 3)
    mu[0, :5, 0] = mu[0, :6, 1] = 1  # 95 and 94 of 100 samples tell nothing
    assert summary(mu, torch.zeros_like(mu))["collapsed_units"] == pytest.approx(2 / 3)


def test_constants_of_the_field():
    constant = summary(torch.full((1, 2000, 8), 0.0), torch.zeros(1, 2000, 8))
    assert (constant["active_units"], constant["kl"], constant["collapsed_units"], constant["variance"]) == (0, 0, 1, 1)
    healthy = summary(*posterior(1, 0.06, M=20_000))
    assert healthy["active_units"] == 1 and healthy["collapsed_units"] == 0
    assert healthy["kl"] / 8 == pytest.approx(0.5 * (0.06 + 1 - 1 - math.log(0.06)), abs=0.01)  # 1.437


def test_the_legacy_statistics_point_the_wrong_way():
    collapsed = legacy(*posterior(0, 1))
    assert collapsed == {"legacy_active_units": 1, "legacy_variance_below": False, "legacy_mean_variance": 1}, "all active, no alarm"
    healthy = legacy(*posterior(1, 0.06))
    assert healthy["legacy_variance_below"] and healthy["legacy_mean_variance"] == pytest.approx(0.06), "an alarm"
    known = legacy(*posterior(1, 0.005))
    assert known["legacy_active_units"] == 0, "the best known posterior has no active unit"


def test_a_constant_that_is_not_the_prior_is_inactive_but_not_collapsed():
    # Free bits can be paid by an offset that is the same for all data: KL, but no information.
    mu, logvar = torch.full((1, 2000, 4), 30.1), torch.zeros(1, 2000, 4)
    block = summary(mu, logvar)
    assert block["active_units"] == 0 and block["collapsed_units"] == 0 and block["kl"] == pytest.approx(4 * 30.1**2 / 2)
    assert block["levels"][0]["mean_variance_per_dim"] == pytest.approx([0] * 4, abs=1e-3)
    assert measures.mutual_information(mu[:, :200], logvar[:, :200])[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spread, variance", [(0.1, 1.0), (1.0, 1.0), (1.0, 0.5), (1.0, 0.06), (2.0, 0.2)])
def test_mutual_information_of_a_gaussian_channel(spread, variance):
    true = 0.5 * math.log(1 + spread**2 / variance)
    joint, each = measures.mutual_information(*posterior(spread, variance, M=1024, D=1, L=2))
    assert each == pytest.approx([true, true], abs=0.06)
    assert joint == pytest.approx(2 * true, abs=0.12), "the levels are independent here"


def test_mutual_information_is_the_kl_minus_that_of_the_aggregate():
    mu, logvar = posterior(1, 0.3, M=1024, D=2)
    joint, (one,) = measures.mutual_information(mu, logvar)
    assert joint == one
    aggregate = 2 * 0.5 * (1.3 - 1 - math.log(1.3))  # q(z) is N(0, 1.3) in each unit
    assert joint == pytest.approx(summary(mu, logvar)["kl"] - aggregate, abs=0.08)


def test_the_variance_within_forwards():
    generator = torch.Generator().manual_seed(0)
    noise, logvar = 0.5 * torch.randn(30, 1, 7, 3, generator=generator), torch.zeros(1, 7, 3)

    def spread(drift: float, size: int = 7) -> Tensor:
        rows = [measures.sums(mu[:, :size] + drift * number, logvar[:, :size], 0.01) for number, mu in enumerate(noise)]
        total = measures.sum_within_forwards(torch.stack([*rows, torch.zeros_like(rows[0])]), torch.tensor([*[size] * 30, 0]).double())
        block = measures.summary(total, 30 * size, **OPTIONS)
        return torch.tensor(block["levels"][0]["mean_variance_per_dim"])

    own = noise[:, 0].var(1, correction=1).mean(0)
    torch.testing.assert_close(spread(0), own)
    torch.testing.assert_close(spread(0.1), own, rtol=1e-4, atol=0)
    assert spread(0, size=1).min() > 0.1, "forwards of one sample have nothing within"


def test_mutual_information_of_nothing_and_of_everything():
    nothing, _ = measures.mutual_information(*posterior(0, 1, M=512))
    assert nothing == pytest.approx(0, abs=1e-9)
    everything, _ = measures.mutual_information(*posterior(3, 1e-4, M=512))
    assert everything == pytest.approx(math.log(512))
    slight, _ = measures.mutual_information(*posterior(0.05, 1, M=512, D=64))
    assert slight == pytest.approx(32 * math.log(1.0025), abs=0.03)


def test_the_estimate_leaves_the_random_generators_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    sample = measures.Sample()
    sample.add(*posterior(1, 0.5))
    first = measures.mutual_information(*sample.tensors())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert measures.mutual_information(*sample.tensors()) == first


def test_a_sample_is_fixed_fair_and_keeps_pairs_together():
    value = torch.arange(3000.0).reshape(1, 3000, 1).expand(2, -1, 3)

    def chosen(pieces: list[int]) -> Tensor:
        sample = measures.Sample(size=500)
        for part in value.split(pieces, dim=1):
            sample.add(part, -part)
        mu, logvar = sample.tensors()
        assert mu.shape == (2, 500, 3) and torch.equal(mu, -logvar) and torch.equal(mu[0], mu[1])
        return mu[0, :, 0]

    all_at_once = chosen([3000])
    assert torch.equal(all_at_once, chosen([1000, 1, 1999])) and len(all_at_once.unique()) == 500
    assert all_at_once.mean() == pytest.approx(1500, abs=120)
    few = measures.Sample(size=500)
    few.add(value[:, :7])
    assert sorted(few.tensors()[0][0, :, 0].tolist()) == list(range(7))
    with pytest.raises(ValueError):
        measures.Sample().tensors()
