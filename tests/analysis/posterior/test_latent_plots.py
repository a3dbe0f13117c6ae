"""Figures of latents: what is drawn where, of many stays and of few."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.posterior.vae_files import latents
from snnexp.analysis.posterior import latent, latent_plots


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    """Draw a file of latents without UMAP; what was read, and the figures by name."""

    def draw(**options):
        folder, figures, save = tmp_path_factory.mktemp("plots"), {}, Figure.savefig
        latents(folder / "test_latents.npz", **options)
        read = latent.read(folder / "test_latents.npz")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(latent_plots, "umap_is_installed", lambda: False)
            patch.setattr(
                Figure,
                "savefig",
                lambda self, path, **k: (figures.update({Path(path.name).name[1:].rsplit(".", 2)[0]: self}), save(self, path, **k)),
            )
            names = latent_plots.draw(read, latent.measure_levels(read), "a $run", folder)
        assert names == list(figures) == ["latent_space_pca.png", "reconstruction_errors.png", "latent_correlation.png"]
        return read, figures

    return draw


@pytest.fixture(scope="module")
def large(draw):
    return draw(sets=900, stays=60, dims=24)


def words(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_the_space(large):
    read, figures = large
    stays, sets, bar = figures["latent_space_pca.png"].axes
    assert words(stays.get_legend()) == ["survived (48)", "died (12)"]
    assert [len(points.get_offsets()) for points in stays.collections] == [48, 12]
    markers = [points.get_paths()[0].vertices.shape for points in stays.collections]
    assert markers[0] != markers[1]  # circles and crosses: readable without colour
    assert stays.get_xlabel().startswith("principal component 1 (") and stays.get_xlabel().endswith(" % of variance)")
    assert sum(len(points.get_offsets()) for points in sets.collections) == 900
    assert len(words(sets.get_legend())) == 4 and bar.get_ylabel() == "time since admission (h)"
    hours = np.concatenate([points.get_array() for points in sets.collections if points.get_array() is not None])
    np.testing.assert_allclose(np.sort(hours), np.sort(read.minute / 60), rtol=1e-6)
    assert sets.get_title("left") == "posterior means of level 1 of 900 sets (24 dimensions), by time"


def test_errors(large):
    read, figures = large
    distribution, size, hour, outcome = figures["reconstruction_errors.png"].axes
    assert words(distribution.get_legend()) == [f"median {np.median(read.error):.3g}", f"mean {read.error.mean():.3g}"]
    assert sum(distribution.patches[0].get_data().values) == 895 and "(5 larger, beyond the axis)" in distribution.get_xlabel()
    ticks = [label.get_text() for label in size.get_xticklabels()]
    assert ticks[:3] == [
        f"{name}\n({chosen.sum()})"
        for name, chosen in (("1", read.size == 1), ("2", read.size == 2), ("3–4", (read.size > 2) & (read.size < 5)))
    ]
    one = read.error[read.size == 1]
    assert [size.patches[0].get_y(), size.patches[0].get_height()] == pytest.approx(
        [np.percentile(one, 25), np.ptp(np.percentile(one, (25, 75)))]
    )
    first = hour.get_lines()[0].get_xydata()[0]
    assert first.tolist() == pytest.approx([0.5, np.median(read.error[read.minute < 60])])
    died = read.y[read.stay] == 1
    assert words(outcome.get_legend())[1] == f"died: {died.sum()} sets, 12 stays,\nmedian {np.median(read.error[died]):.3g}"
    assert outcome.patches[-1].get_hatch() == "////"


def test_titles_name_the_epoch(draw):
    folder = draw(sets=30, stays=6)[0].path.parent
    arrays = dict(np.load(folder / "test_latents.npz"))
    np.savez(folder / "test_latents.npz", **arrays, epoch=np.array(5.0))
    read, titles, figure = latent.read(folder / "test_latents.npz"), [], latent_plots.figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_plots, "figure", lambda path, width, height, title: titles.append(title) or figure(path, width, height, title))
        latent_plots.draw(read, latent.measure_levels(read), "a run", folder)
    assert len(titles) == 3 and all(title.endswith(", weights of epoch 5") for title in titles)


def test_correlation(large):
    read, figures = large
    first, second, _ = figures["latent_correlation.png"].axes
    assert first.get_title("left").startswith("level 0: 18 of 24 active, mean among active 0.")
    drawn = second.images[0].get_array()
    assert drawn.shape == (24, 24) and np.allclose(np.diag(drawn), 1) and len(second.get_xticks()) < 12
    assert second.get_lines()[0].get_ydata()[0] == 11.5  # 12 active ones come first
    assert first.get_xlabel() == "place of the dimension, active before inactive (dashed)"


def test_few_stays_of_one_outcome_and_one_level(draw):
    read, figures = draw(sets=12, stays=12, dims=8, width=4, died=0, levels=1)
    assert words(figures["latent_space_pca.png"].axes[0].get_legend()) == ["survived (12)"]
    assert words(figures["reconstruction_errors.png"].axes[3].get_legend())[1] == "died: no stay"
    axes = figures["latent_correlation.png"].axes[0]
    assert len(axes.get_xticks()) == 8 and {label.get_text() for label in axes.get_xticklabels()} == set("01234567")


def test_without_a_head_and_with_one_set(draw):
    read, figures = draw(sets=1, stays=1, dims=2, levels=1, head=False)
    assert len(figures["latent_space_pca.png"].axes) == 2  # the sets and the colour bar
    assert words(figures["latent_correlation.png"].axes[0].get_legend()) == ["mean never varies"]


def test_umap_is_chosen_where_it_is_and_points_are_enough(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(latent_plots, "umap_is_installed", lambda: True)
    monkeypatch.setattr(latent_plots, "draw_space", lambda latents, title, path, with_umap: asked.append((path.name, with_umap)))
    for name in ("draw_errors", "draw_correlation"):
        monkeypatch.setattr(latent_plots, name, lambda *arguments: None)
    for stays in (30, 19):
        latents(tmp_path / "a.npz", sets=50, stays=stays)
        latent_plots.draw(latent.read(tmp_path / "a.npz"), [], "a", tmp_path)
    assert asked == [("latent_space_umap.png", True), ("latent_space_pca.png", False)]


def test_sizes_and_hours_are_grouped():
    size = np.array([1, 2, 3, 4, 5, 8, 9, 16, 17, 40])
    assert [(name, int(chosen.sum())) for name, chosen in latent_plots.size_groups(size)] == [
        ("1", 1), ("2", 1), ("3–4", 2), ("5–8", 2), ("9–16", 2), ("17–32", 1), ("33–64", 1),
    ]  # fmt: skip
    assert [name for name, _ in latent_plots.size_groups(np.array([3, 3, 7]))] == ["3", "7"]
    middles, quartiles, wide = latent_plots.by_hour(np.array([1.0, 3.0, 5.0, 7.0]), np.array([0.2, 0.8, 47.5, 48.0]))
    assert middles.tolist() == [0.5, 47.5] and quartiles[:, 1].tolist() == [2, 6] and wide == 1
    assert latent_plots.by_hour(np.ones(2), np.array([0.0, 480.0]))[2] == 10
