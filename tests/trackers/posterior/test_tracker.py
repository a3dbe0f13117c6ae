"""The posterior tracker: made posteriors are told apart, files and state, a resume to the byte, hysteresis, what is refused."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from conftest import composed
from snnexp import parts
from snnexp.errors import RunFailed, UserError
from snnexp.trackers.posterior import measures, plot
from snnexp.trackers.posterior import tracker as module
from snnexp.trackers.posterior.tracker import PosteriorTracker

SHAPE = (2, 40, 6)


class Variational(nn.Module):
    """A model whose posterior the test makes."""

    def __init__(self) -> None:
        super().__init__()
        self.posterior: tuple[Tensor, Tensor] | None = None


def make_posterior(*alive: int, seed: int = 0, M: int = SHAPE[1]) -> tuple[Tensor, Tensor]:
    """A posterior of which `alive` units a level tell (variance 0.06), and the others are the prior."""
    mu, logvar = torch.zeros(2, M, 6), torch.zeros(2, M, 6)
    noise = torch.randn(2, M, 6, generator=torch.Generator().manual_seed(seed))
    for level, units in enumerate(alive):
        mu[level, :, :units] = noise[level, :, :units]
        logvar[level, :, :units] = math.log(0.06)
    return mu, logvar


HEALTHY, HALF, DEAD = (6, 6), (6, 0), (0, 0)


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that hold what was to be drawn, in words: the true ones take half a second each."""

    def draw(history: list[dict], last: dict, path: Path, **options: object) -> None:
        path.write_text(json.dumps([history, last, repr(options)]))

    monkeypatch.setattr(plot, "draw", draw)


class Loop:
    """A training loop in which `course(step)` says how many units of each level are alive."""

    def __init__(self, folder: Path | None, course, *, held_out: bool = True, forwards: int = 1, reduce=Tensor.cpu, **options) -> None:
        self.model, self.task, self.step, self.course, self.forwards = Variational(), SimpleNamespace(terms={}), 0, course, forwards
        self.logged: dict[int, dict[str, float]] = {}
        options = {"update_every": 10, "plot_every": 1000, "window": 4, "patience": 2} | options
        self.tracker = PosteriorTracker(
            model=self.model, folder=folder, task=self.task, probe=self.probe if held_out else None, reduce=reduce, **options
        )

    def probe(self) -> Iterator[tuple[Tensor, Tensor, dict]]:
        for part in (0, 1):
            yield *make_posterior(*self.course(self.step), seed=1000 + part, M=60), {"Recon": torch.tensor(2.0 + part)}

    def to(self, step: int) -> "Loop":
        while self.step < step:
            self.step += 1
            for forward in range(self.forwards):
                self.model.posterior = make_posterior(*self.course(self.step), seed=7 * self.step + forward)
                self.task.terms = {"Recon": torch.tensor(float(self.step)), "KL": torch.tensor(1.0), "Beta": 0.001 * self.step}
                self.tracker.observe()
            if values := self.tracker.stepped(self.step):
                self.logged[self.step] = values
        return self

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.tracker.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "alive, verdict, active, collapsed, legacy_active, legacy_alarm",
    [
        (DEAD, "collapsed", 0, 1, 1, False),
        (HALF, "partly collapsed", 0.5, 0.5, 1, False),
        (HEALTHY, "healthy", 1, 0, 1, True),
    ],
)
@pytest.mark.parametrize("held_out", [True, False])
def test_made_posteriors_are_told_apart(tmp_path, alive, verdict, active, collapsed, legacy_active, legacy_alarm, held_out):
    (record,) = Loop(tmp_path, lambda _: alive, held_out=held_out).to(10).records
    assert list(record) == [
        "step", "epoch", "beta", "held_out", "window", "verdict", "alarms",
        "legacy_active_units", "legacy_variance_below", "legacy_mean_variance",
    ]  # fmt: skip
    assert (record["step"], record["epoch"], record["beta"], record["verdict"]) == (10, 1, 0.01, verdict)
    assert record["alarms"] == [], "patience"
    assert (record["legacy_active_units"], record["legacy_variance_below"]) == (legacy_active, legacy_alarm), "inverted"
    assert (record["held_out"] is None) == (not held_out)
    for name, sets, error in (("held_out", 120, 2.5), ("window", 160, 8.5)):
        block = record[name]
        if block is None:
            continue
        assert list(block) == [
            "sets", "kl", "reconstruction", "active_units", "collapsed_units", "mutual_information", "variance", "levels",
        ]  # fmt: skip
        assert (block["sets"], block["reconstruction"], block["active_units"], block["collapsed_units"]) == (sets, error, active, collapsed)
        assert block["kl"] == pytest.approx(1.437 * sum(alive), abs=1.2), "the 0.5 (mu^2 + 0.06 - 1 - log 0.06) of each unit"
        assert block["variance"] == pytest.approx(1 - 0.94 * active, rel=1e-5)
        for level, units in zip(block["levels"], alive, strict=True):
            assert list(level) == [
                "kl", "active_units", "collapsed_units", "mutual_information", "variance", "kl_per_dim", "mean_variance_per_dim",
            ]  # fmt: skip
            assert [kl > 0.5 for kl in level["kl_per_dim"]] == [unit < units for unit in range(6)]
            assert [spread > 0.4 for spread in level["mean_variance_per_dim"]] == [unit < units for unit in range(6)]
            if name == "held_out":
                assert level["mutual_information"] == pytest.approx(math.log(120) if units else 0, abs=0.2)
            else:
                assert level["mutual_information"] is None
        assert sum(level["kl"] for level in block["levels"]) == pytest.approx(block["kl"], rel=1e-5)


@pytest.mark.parametrize(
    "scale, variance, drift, held_out, verdict, active",
    [
        (0.08, 1e-4, 0, True, "partly collapsed", 0),  # on a scale of its own it tells all sets apart
        (0.011**0.5, 1.0, 0, True, "partly collapsed", 1),  # all units active, 0.35 nats a level
        (0.94**0.5, 0.06, 0, True, "healthy", 1),
        (0.0, 1.0, 0.1, False, "collapsed", 0),  # a constant that moves with the weights
        (0.94**0.5, 0.06, 0.1, False, "healthy", 1),
    ],
)
def test_posteriors_that_mislead_one_number(scale, variance, drift, held_out, verdict, active):
    model, logvar = Variational(), torch.full((2, 1500, 64), math.log(variance))

    def make_posterior(step: int) -> tuple[Tensor, Tensor]:
        return scale * torch.randn(2, 1500, 64, generator=torch.Generator().manual_seed(step)) + drift * step, logvar

    tracker = PosteriorTracker(model=model, update_every=3, probe=(lambda: iter([(*make_posterior(0), {})])) if held_out else None)
    for step in range(1, 4):
        model.posterior = make_posterior(step)
        tracker.observe()
        tracker.stepped(step)
    last = tracker.state_dict()["last"]
    block = last["held_out"] or last["window"]
    assert (last["verdict"], block["active_units"]) == (verdict, pytest.approx(active, abs=0.05))


def test_a_small_latent_that_is_well_is_healthy():
    model, mu = Variational(), torch.randn(1, 2000, 1, generator=torch.Generator().manual_seed(0))
    for variance, verdict in ((0.06, "healthy"), (0.2, "healthy"), (0.35, "partly collapsed")):  # log 2 is a variance of 0.25
        logvar = torch.full_like(mu, math.log(variance))
        posterior = (1 - variance) ** 0.5 * mu, logvar
        tracker = PosteriorTracker(model=model, update_every=1, probe=lambda found=posterior: iter([(*found, {})]))
        tracker.stepped(1)
        assert tracker.state_dict()["last"]["verdict"] == verdict


def test_the_window_is_the_last_forwards_and_others_cost_nothing(tmp_path, monkeypatch):
    counted = []
    sums = measures.sums
    monkeypatch.setattr(measures, "sums", lambda *args: counted.append(1) or sums(*args))
    loop = Loop(tmp_path, lambda _: HEALTHY, held_out=False).to(30)
    assert [record["window"]["reconstruction"] for record in loop.records] == [8.5, 18.5, 28.5]
    assert len(counted) == 1 + 3 * 4, "the first step cannot know that every step will be told"
    twice = Loop(tmp_path / "twice", lambda _: HEALTHY, held_out=False, forwards=2).to(20)
    assert [record["window"]["reconstruction"] for record in twice.records] == [9.5, 19.5]
    wide = Loop(tmp_path / "wide", lambda _: HEALTHY, held_out=False, window=15).to(20)
    assert [record["window"]["sets"] for record in wide.records] == [400, 600]


def test_a_loop_that_tells_some_steps_only_has_its_window(tmp_path):
    loop = Loop(tmp_path, lambda _: HEALTHY, held_out=False)
    for step in range(1, 21):
        loop.model.posterior = make_posterior(*HEALTHY, seed=step)
        loop.tracker.observe()
        if step % 10 == 0:
            assert loop.tracker.stepped(step)
    assert [(record["window"]["sets"], record["window"]["reconstruction"], record["beta"]) for record in loop.records] == [
        (160, None, None)
    ] * 2


def test_what_is_logged_and_told(tmp_path):
    loop = Loop(tmp_path, lambda _: HALF).to(10)
    assert list(loop.logged) == [10]
    names = ["KL", "ActiveUnits", "CollapsedUnits", "MutualInformation", "Variance"]
    expected = [*names, "Reconstruction", "Beta", *(f"{name}_level{level}" for level in (0, 1) for name in names)]
    assert list(loop.logged[10]) == [f"Posterior/{name}" for name in expected]
    assert loop.logged[10]["Posterior/ActiveUnits_level0"] == 1 and loop.logged[10]["Posterior/ActiveUnits_level1"] == 0
    assert loop.logged[10]["Posterior/KL"] == loop.records[0]["held_out"]["kl"]
    assert loop.tracker.close_epoch(1) == loop.logged[10]
    assert loop.to(20).records[1]["epoch"] == 2
    assert loop.tracker.rows()[0] == ("posterior", "partly collapsed at step 20 (held-out)")
    assert loop.tracker.rows()[1] == ("active units", "50 %")
    fresh = Loop(tmp_path / "b", lambda _: HALF).to(9).tracker
    assert fresh.close_epoch(1) == {} and fresh.finish() == [] and "no update in 9 steps" in fresh.rows()[0][1]


def test_alarms_come_and_go_with_news(tmp_path):
    loop = Loop(tmp_path, lambda step: DEAD if 20 < step <= 50 else HEALTHY).to(80)
    assert [record["verdict"] for record in loop.records] == ["healthy"] * 2 + ["collapsed"] * 3 + ["healthy"] * 3
    assert [len(record["alarms"]) for record in loop.records] == [0, 0, 0, 9, 9, 0, 0, 0]
    assert loop.records[3]["alarms"][0] == {
        "condition": "active units below 10 %", "since": 30, "value": 0, "threshold": 0.1, "where": "held_out",
    }  # fmt: skip
    begun, ended = loop.tracker.news
    assert begun.startswith("posterior collapsed at step 40 (held-out data): active units below 10 % (0 %) since step 30;")
    assert ended.startswith("posterior healthy at step 60: no longer active units below 10 %")


def test_stop_on_collapse(tmp_path, quick_pictures):
    loop = Loop(tmp_path, lambda step: DEAD if step > 15 else HEALTHY, stop_on_collapse=True, patience=3)
    with pytest.raises(
        RunFailed, match=r"collapsed at 3 updates in a row, since step 20.*`snnexp resume RUN task\.beta=.* task\.free_bits="
    ):
        loop.to(100)
    assert loop.step == 40 and len(loop.records) == 4 and loop.records[-1]["verdict"] == "collapsed"
    assert (tmp_path / "posterior_metrics" / "posterior_40.png").exists() and "collapsed" in (
        tmp_path / "posterior_metrics/report.txt"
    ).read_text()
    half = Loop(tmp_path / "half", lambda _: HALF, stop_on_collapse=True, patience=1).to(50)
    assert len(half.records) == 5, "a model that lost a level goes on"


def test_the_main_process_decides_whether_to_stop(tmp_path):
    steps = []

    def reduce(value: Tensor) -> Tensor:  # of two processes, of which the other is the main one
        if value.shape == (1,):
            steps.append(value.item())
            return torch.ones(1)
        return value.cpu()

    with pytest.raises(RunFailed):
        Loop(tmp_path, lambda _: DEAD, stop_on_collapse=True, patience=1, main=False, reduce=reduce).to(10)
    assert steps == [0] and not (tmp_path / "posterior_metrics").exists()


# Resume.


def test_a_killed_run_has_the_same_record_to_the_byte(tmp_path, quick_pictures):
    def course(step: int) -> tuple[int, int]:
        return HEALTHY if step < 25 else (max(0, 6 - step // 10), 0)

    options = {"plot_every": 20, "keep_plots": 2, "window": 7}
    whole = Loop(tmp_path / "whole", course, **options).to(100)
    for stop, killed in ((9, 14), (10, 10), (37, 62), (58, 61), (90, 99)):
        folder = tmp_path / f"{stop}"
        folder.mkdir()
        broken = Loop(folder, course, **options).to(stop)
        broken.tracker.close_epoch(3)
        torch.save(broken.tracker.state_dict(), folder / "state.pth")
        broken.to(killed)
        again = Loop(folder, course, **options)
        again.step = stop
        again.tracker.load_state_dict(torch.load(folder / "state.pth", weights_only=True))
        steps = [int(path.stem.rpartition("_")[2]) for path in again.tracker.folder.glob("posterior_*.png")]
        assert all(step <= stop for step in steps), "pictures of steps to come are gone"
        assert again.tracker.close_epoch(0) == broken.logged.get(stop // 10 * 10, {})
        again.to(100)
        mine, other = ((loop.tracker.folder / "metrics.jsonl").read_bytes() for loop in (whole, again))
        assert mine == other
        assert [path.name for path in whole.tracker.finish()] == [path.name for path in again.tracker.finish()]
        for name in ("report.txt", "posterior.png", "posterior_100.png"):
            assert (whole.tracker.folder / name).read_bytes() == (again.tracker.folder / name).read_bytes()
        assert whole.tracker.rows() == again.tracker.rows()


def test_a_resumed_window_has_the_rows_of_one_that_was_left_alone(tmp_path):
    whole = Loop(tmp_path / "whole", lambda _: HEALTHY, held_out=False, window=4)
    for step in (1, 10, 13):
        state = whole.to(step).tracker.state_dict()
        again = Loop(tmp_path / f"{step}", lambda _: HEALTHY, held_out=False, window=4)
        if whole.tracker.folder.exists():
            shutil.copytree(whole.tracker.folder, again.tracker.folder, dirs_exist_ok=True)
        again.tracker.load_state_dict(state)
        again.step = step
        rows, expected = (loop.to(step + 2).tracker.state_dict()["window"] for loop in (again, whole))
        assert torch.equal(rows, expected)


def test_two_processes_have_one_window_before_and_after_a_restart(tmp_path):
    def reduce(value: Tensor) -> Tensor:  # the other process saw the same
        return 2 * value.cpu()

    loop = Loop(tmp_path, lambda _: HALF, held_out=False, reduce=reduce).to(10)
    one = Loop(tmp_path / "one", lambda _: HALF, held_out=False).to(10)
    both, alone = (each.records[0]["window"] for each in (loop, one))
    for mine, other in zip(both["levels"], alone["levels"], strict=True):
        spread, expected = mine.pop("mean_variance_per_dim"), other.pop("mean_variance_per_dim")
        assert spread == pytest.approx([value * (320 / 316) / (160 / 156) for value in expected], rel=1e-5), "four forwards, not eight"
    assert both == alone | {"sets": 320}
    loop.to(18)
    state = loop.tracker.state_dict()
    loop.to(20)
    for main in (True, False):
        again = Loop(tmp_path / f"{main}", lambda _: HALF, main=main)
        if main:
            (tmp_path / "True" / "posterior_metrics").mkdir(parents=True)
            (tmp_path / "True" / "posterior_metrics" / "metrics.jsonl").write_bytes((loop.tracker.folder / "metrics.jsonl").read_bytes())
        again.tracker.load_state_dict(state)
        window = again.tracker.state_dict()["window"]
        assert torch.equal(window, state["window"] if main else torch.zeros_like(state["window"])) and len(window) == 4


def test_a_record_that_was_lost_is_refused_and_a_new_run_starts_over(tmp_path):
    loop = Loop(tmp_path, lambda _: HEALTHY).to(30)
    state = loop.tracker.state_dict()
    (loop.tracker.folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="metrics.jsonl has 3 bytes"):
        loop.tracker.load_state_dict(state)
    assert len(Loop(tmp_path, lambda _: HEALTHY).to(10).records) == 1


def test_another_epsilon_begins_a_new_window(tmp_path):
    loop = Loop(tmp_path, lambda _: HEALTHY, held_out=False).to(18)
    again = Loop(tmp_path, lambda _: HEALTHY, held_out=False, epsilon=0.5)
    again.tracker.load_state_dict(loop.tracker.state_dict())
    again.step = 18
    assert again.to(20).records[1]["window"]["sets"] == 80


# Files, cost, a loop of one's own, and what is refused.


def test_pictures_are_bounded_in_number(tmp_path, quick_pictures):
    loop = Loop(tmp_path, lambda _: HALF, plot_every=15, keep_plots=2).to(60)
    assert sorted(path.name for path in loop.tracker.folder.iterdir()) == [
        "metrics.jsonl", "posterior.png", "posterior_50.png", "posterior_60.png", "report.txt",
    ]  # fmt: skip
    assert [path.name for path in loop.tracker.finish()] == [
        "metrics.jsonl", "report.txt", "posterior.png", "posterior_50.png", "posterior_60.png",
    ]  # fmt: skip


def test_the_report_says_what_the_numbers_mean(tmp_path, quick_pictures):
    loop = Loop(tmp_path, lambda step: HEALTHY if step <= 20 else DEAD).to(50)
    loop.tracker.finish()
    text = (loop.tracker.folder / "report.txt").read_text()
    assert text.startswith("posterior: collapsed at step 50 (judged on held-out data)\n")
    assert "steps 10 to 20: healthy\n  steps 30 to 50: collapsed" in text and "alarm below 10 %" in text
    assert "  active units below 10 % (0 %) since step 30\n" in text and "task.free_bits" in text
    assert "point the wrong way" in text and "legacy active units)      100 %" in text and "no: no alarm there (it is 1)" in text


def test_a_forward_does_not_read_from_the_device(tmp_path, monkeypatch):
    loop = Loop(tmp_path, lambda _: HEALTHY)

    def refused(*_: object) -> None:
        raise AssertionError("this would wait for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, name, refused)
    loop.to(9)


def test_random_generators_are_left_alone(tmp_path):
    loop = Loop(tmp_path, lambda _: HEALTHY, plot_every=10)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    loop.to(20)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_training_forwards_are_seen_once_each(tmp_path):
    loop = Loop(tmp_path, lambda _: HEALTHY, held_out=False)
    with pytest.raises(UserError, match="found no posterior; call it after a forward pass"):
        loop.tracker.observe()
    loop.model.posterior = make_posterior(*HEALTHY)
    loop.tracker.observe("val")
    assert loop.tracker.stepped(10) == {} and not loop.tracker.folder.exists(), "nothing to measure"
    loop.tracker.observe()
    with pytest.raises(UserError, match="called twice after one forward"):
        loop.tracker.observe()


def test_alone_in_a_loop_of_ones_own():
    model = Variational()
    tracker = PosteriorTracker(model=model, update_every=2)
    for step in range(1, 5):
        model.posterior = make_posterior(*DEAD, seed=step)
        tracker.observe()
        tracker.stepped(step)
    assert all(path.exists() for path in tracker.finish()) and len(tracker.finish()) == 3


def test_numbers_that_are_not_finite_are_null(tmp_path, quick_pictures):
    loop = Loop(tmp_path, lambda _: HEALTHY, held_out=False).to(9)
    loop.step = 10
    mu, logvar = make_posterior(*HEALTHY)
    mu[0, 0, 0] = math.nan
    loop.model.posterior = mu, logvar
    loop.tracker.observe()
    values = loop.tracker.stepped(10)
    assert loop.records[0]["window"]["kl"] is None and "Posterior/KL" not in values
    assert loop.tracker.rows()[2] == ("posterior KL", "not finite") and loop.tracker.finish()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": nn.Linear(2, 2)}, ["tracker=posterior", "Linear has no posterior", "seqset_vae", "tracker=none"]),
        ({"update_every": 0}, ["tracker.posterior.update_every: 0", "at least 1"]),
        ({"plot_every": 0}, ["tracker.posterior.plot_every: 0"]),
        ({"window": -1}, ["tracker.posterior.window: -1"]),
        ({"patience": 0}, ["tracker.posterior.patience: 0"]),
        ({"keep_plots": 0}, ["tracker.posterior.keep_plots: 0"]),
        ({"epsilon": -0.1}, ["tracker.posterior.epsilon: -0.1", "at least 0"]),
        ({"delta": 1.5}, ["tracker.posterior.delta: 1.5", "from 0 to 1"]),
        ({"active_threshold": math.nan}, ["tracker.posterior.active_threshold: nan"]),
        ({"min_active_units": 0.6}, ["tracker.posterior.min_active_units: 0.6", "from 0 to 0.5"]),
        ({"max_collapsed_units": 0.4}, ["tracker.posterior.max_collapsed_units: 0.4", "from 0.5 to 1"]),
        ({"min_mutual_information": 5.0}, ["tracker.posterior.min_mutual_information: 5.0", "from 0 to 4.16"]),
    ],
)
def test_what_is_not_allowed_is_said(options, message):
    with pytest.raises(UserError) as error:
        PosteriorTracker(**{"model": Variational()} | options)
    assert all(part in str(error.value) for part in message), str(error.value)


@pytest.mark.parametrize("name, expected", [("posterior", (200, 2000, 50)), ("posterior_fast", (100, 1000, 50))])
def test_presets(name, expected, tmp_path):
    node = composed(f"tracker={name}")["tracker"]
    assert list(node) == ["posterior"]
    options = {key: value for key, value in node["posterior"].items() if key != "_target_"}
    assert (options["update_every"], options["plot_every"], options["window"]) == expected
    tracker = parts.instantiate(node["posterior"], None, model=Variational(), folder=tmp_path)
    assert isinstance(tracker, module.PosteriorTracker)
    default = PosteriorTracker(model=Variational())
    assert (default.update_every, default.plot_every) == (200, 2000) and default.conditions == tracker.conditions
