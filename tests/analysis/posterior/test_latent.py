"""Latents read and measured: collapsed, half collapsed and healthy posteriors are told apart by numbers that are known."""

import math

import numpy as np
import pytest

from analysis.posterior.vae_files import latents, posterior
from snnexp.analysis.posterior import latent
from snnexp.rundir import RunDir


@pytest.fixture(scope="module")
def half():
    mu, logvar = posterior(600, 8, levels=1, collapsed=(0.5,))
    return mu[0], logvar[0], latent.measure_level(mu[0], logvar[0])


def test_units_are_told_apart(half):
    mu, logvar, level = half
    assert level.active.tolist() == [True] * 4 + [False] * 4 and level.collapsed == 0.5
    expected = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).mean(0)
    np.testing.assert_allclose(level.kl, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(level.spread, mu.astype(float).var(0), rtol=1e-4)
    assert level.variance[-1] == pytest.approx(1, abs=1e-3) and level.mean_variance == pytest.approx(np.exp(logvar).mean(), rel=1e-4)


@pytest.mark.parametrize(("fraction", "active"), [(1.0, 0), (0.0, 8)])
def test_all_or_nothing(fraction, active):
    mu, logvar = posterior(400, 8, levels=1, collapsed=(fraction,))
    level = latent.measure_level(mu[0], logvar[0])
    assert level.active.sum() == active and level.collapsed == fraction
    assert level.mutual_information < 0.01 if fraction else level.mutual_information > 3


def test_mutual_information_of_a_known_channel():
    """z = x + noise of one dimension, x ~ N(0, c²): I = ½ ln(1 + c² / v)."""
    x = np.random.default_rng(3).standard_normal((2000, 1))
    for scale, variance in ((0.9, 0.19), (0.5, 0.75)):
        found, limit = latent.mutual_information(scale * x, np.full_like(x, math.log(variance)))
        assert found == pytest.approx(0.5 * math.log(1 + scale**2 / variance), abs=0.05) and limit == pytest.approx(math.log(2000))
    assert latent.mutual_information(x[:1], x[:1]) == (None, None)


def test_a_constant_code_is_not_active_though_it_has_a_kl():
    level = latent.measure_level(np.full((50, 1), 2.0, np.float32), np.full((50, 1), -3.0, np.float32))
    assert not level.active[0] and level.collapsed == 0 and level.kl[0] == pytest.approx(0.5 * (math.exp(-3) + 4 - 1 + 3), rel=1e-5)


def test_a_file_and_where_it_is_found(tmp_path):
    made = latents(tmp_path / "evaluations/20260101_000000/val_latents.npz")
    latents(tmp_path / "evaluations/20250101_000000/test_latents.npz")
    assert RunDir(tmp_path).arrays("latents").parent.name == "20260101_000000"
    latents(tmp_path / "test_latents.npz", sets=40)
    assert RunDir(tmp_path).arrays("latents") == tmp_path / "test_latents.npz"
    assert RunDir(tmp_path / "evaluations").arrays("latents") is None
    read = latent.read(tmp_path / "evaluations/20260101_000000/val_latents.npz")
    np.testing.assert_array_equal(read.mu, made["mu"])
    assert read.state.shape == (30, 16) and read.dropped == 0


def test_sets_that_are_not_finite_are_left_out(tmp_path):
    made = latents(tmp_path / "a.npz", sets=20)
    made["mu"][1, 3, 2] = np.nan
    made["logvar"][0, 7, 0] = np.inf
    np.savez(tmp_path / "a.npz", **made)
    read = latent.read(tmp_path / "a.npz")
    assert read.dropped == 2 and read.mu.shape[1] == 18 == len(read.stay) == len(read.error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mu": None}, "it has no mu"),
        ({"logvar": np.zeros((2, 5, 8))}, "are not .levels, sets, dimensions."),
        ({"size": np.zeros(3)}, "not numbers of 20 sets"),
        ({"y": np.zeros(2)}, "stay names others than the 2 stays"),
        ({"state": np.zeros((2, 3))}, "is not .stays, width."),
        ({"mu": np.full((2, 20, 8), np.nan)}, "none of its posteriors is finite"),
        ({"epoch": np.arange(2)}, "is not one number"),
        ({"y": np.array([{}])}, "allow_pickle"),
    ],
)
def test_files_that_are_no_latents(tmp_path, change, words):
    made = latents(tmp_path / "a.npz", sets=20) | change
    np.savez(tmp_path / "a.npz", **{name: array for name, array in made.items() if array is not None})
    with pytest.raises(ValueError, match=words):
        latent.read(tmp_path / "a.npz")


@pytest.mark.parametrize(("epoch", "words"), [(None, ""), (np.nan, ""), (5.0, ", weights of epoch 5"), (0.25, ", weights of epoch 0.25")])
def test_whose_weights_made_them(tmp_path, epoch, words):
    made = latents(tmp_path / "a.npz", sets=20)
    np.savez(tmp_path / "a.npz", **made, **({} if epoch is None else {"epoch": np.array(epoch)}))
    assert latent.read(tmp_path / "a.npz").weights == words


def test_principal_components():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 1)) * [3.0, 0, 0] + generator.standard_normal((500, 3)) * [0, 1.0, 0]
    rows[7] = np.nan
    found = latent.project(rows, with_umap=False)
    assert len(found.points) == 499 and 7 not in found.chosen and found.shares[0] == pytest.approx(0.9, abs=0.02)
    np.testing.assert_allclose(np.abs(found.points[:, 0]), np.abs(rows[found.chosen, 0] - rows[found.chosen, 0].mean()), atol=0.4)
    assert found.labels()[0].startswith("principal component 1 (9")
    assert latent.project(np.zeros((3, 1)), with_umap=False).shares == [0, 0]
    assert len(latent.project(np.zeros((latent.POINTS + 9, 2)), with_umap=False).chosen) == latent.POINTS


def test_umap_where_it_is():
    pytest.importorskip("umap")
    rows = np.repeat(np.eye(2) * 50, 30, axis=0) + np.random.default_rng(0).standard_normal((60, 2))
    found = latent.project(rows, with_umap=True)
    assert found.points.shape == (60, 2) and found.labels()[0].startswith("UMAP 1")
    np.testing.assert_array_equal(found.points, latent.project(rows, with_umap=True).points)


def test_correlation_and_its_order():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 4000))
    noise = 0.1 * generator.standard_normal((4, 4000))
    mu = np.stack([a, b, -a + noise[0], np.full(4000, 7.0), b + noise[1]], axis=1).astype(np.float32)
    matrix = latent.correlation(mu)
    assert np.isnan(matrix[3]).all() and np.isnan(matrix[:, 3]).all()
    assert matrix[0, 2] > 0.98 and matrix[1, 4] > 0.98 and matrix[0, 1] < 0.1
    ordered, active = latent.order_dimensions(matrix, np.array([True, True, True, False, True]))
    assert active == 4 and ordered[-1] == 3 and sorted(ordered) == [0, 1, 2, 3, 4]
    assert {frozenset(map(int, ordered[:2])), frozenset(map(int, ordered[2:4]))} == {frozenset({0, 2}), frozenset({1, 4})}
