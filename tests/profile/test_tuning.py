"""The ladder, with a machine of our own making: what is tried, what is believed, and how it ends."""

from collections import Counter

import pytest

from snnexp.profile.child_process import Outcome
from snnexp.profile.tuning import Ladder, Space

BASE = {
    "batch_size": 4, "accumulate": 1, "precision": "fp32", "compile": False, "channels_last": True, "optimizer": "adam", "workers": 0,
    "prefetch": 2,
}  # fmt: skip


class Machine:
    """Runs a setting at the rate, and in the memory, that functions of it say; each attempt takes `seconds`."""

    def __init__(self, rate, memory=lambda s: 1, limit=10, seconds=1.0) -> None:
        self.rate, self.memory, self.limit, self.seconds = rate, memory, limit, seconds
        self.now, self.asked = 0.0, []

    def __call__(self, setting, seconds) -> Outcome:
        self.asked.append(dict(setting))
        self.now += self.seconds
        if self.memory(setting) > self.limit:
            return Outcome("out of memory", "too much", seconds=self.seconds)
        rate = self.rate(setting)
        if rate is None:
            return Outcome("failed", "no", seconds=self.seconds)
        return Outcome("ok", report={"samples_per_s": {"median": rate}}, memory=self.memory(setting), seconds=self.seconds)


def climb(machine, space=None, baseline=BASE, budget=1e6, **options) -> Ladder:
    ladder = Ladder(baseline, machine, budget, clock=lambda: machine.now, **options)
    ladder.start()
    ladder.climb(space or Space(["bf16"], samples=64, layouts=[False]))
    return ladder


def test_only_what_is_faster_is_kept_and_each_thing_is_tried_against_it():
    machine = Machine(lambda s: 100 * (3 if s["precision"] == "bf16" else 1) * (0.5 if s["compile"] else 1) * min(s["batch_size"], 16) / 4)
    ladder = climb(machine)
    assert ladder.changes() == {"precision": "bf16", "batch_size": 16}
    assert [(row.changed, row.kept) for row in ladder.rows] == [
        ({}, True),
        ({"precision": "bf16"}, True),
        ({"channels_last": False}, False),
        ({"compile": True}, False),
        ({"batch_size": 8}, True),
        ({"batch_size": 16}, True),
        ({"batch_size": 32}, False),
        ({"batch_size": 64}, False),  # twice no faster: the end of the doubling
    ]
    gains = [row.gain for row in ladder.rows]
    assert gains == pytest.approx([1, 3, 1, 0.5, 2, 2, 1, 1])
    assert [row.over_baseline for row in ladder.rows] == pytest.approx([1, 3, 3, 1.5, 6, 12, 12, 12])
    final = ladder.compare()
    assert final["ratio"] == 12 and final["pairs"] == [[100, 1200]] * 2
    assert [s["batch_size"] for s in machine.asked[-4:]] == [4, 16, 16, 4]  # in turn, in changing order


def test_less_than_the_threshold_is_noise():
    assert climb(Machine(lambda s: 100 + (s["precision"] == "bf16"))).changes() == {}
    assert climb(Machine(lambda s: 100 + 3 * (s["precision"] == "bf16"))).changes() == {"precision": "bf16"}


def test_a_lucky_first_look_is_not_believed():
    seen = Counter()

    def rate(setting):
        seen[setting["precision"]] += 1
        return 200 if setting["precision"] == "bf16" and seen["bf16"] == 1 else 100

    ladder = climb(Machine(rate))
    assert ladder.changes() == {} and ladder.rows[1].gain == 1.0 and not ladder.rows[1].kept
    assert ladder.rows[1].rate == 100 and ladder.rows[1].note == "measured 3 times"


def test_out_of_memory_and_failures_are_rows():
    def rate(setting):
        return None if setting["compile"] else 100 * setting["batch_size"]

    ladder = climb(Machine(rate, memory=lambda s: s["batch_size"], limit=10))
    states = {tuple(row.changed.items()): row.outcome.state for row in ladder.rows}
    assert states[(("compile", True),)] == "failed" and states[(("batch_size", 16),)] == "out of memory"
    assert ladder.changes() == {"batch_size": 8} and len(ladder.rows) == 6
    assert ladder.rows[-1].gain is None and ladder.rows[-1].rate is None


def test_where_memory_ends_checkpointing_and_then_small_moments_make_room():
    def memory(s):
        return s["batch_size"] * (0.5 if s["model.checkpoint_attn"] else 1) * (0.5 if s["optimizer"] == "adamw8bit" else 1)

    def rate(s):
        return 100 * s["batch_size"] * (0.8 if s["model.checkpoint_attn"] else 1)

    space = Space([], ["model.checkpoint_attn"], eight_bit=True, samples=100)
    ladder = climb(Machine(rate, memory, limit=8), space, BASE | {"model.checkpoint_attn": False})
    assert ladder.changes() == {"batch_size": 32, "model.checkpoint_attn": True, "optimizer": "adamw8bit"}
    assert [row.outcome.state for row in ladder.rows if row.changed.get("batch_size") == 16] == ["out of memory", "ok"]
    assert ladder.rows[-1].changed == {"batch_size": 64} and ladder.rows[-1].outcome.state == "out of memory"


def test_checkpointing_that_is_on_is_tried_off():
    both = BASE | {"model.checkpoint_attn": True, "model.checkpoint_ffn": True}
    space = Space([], ["model.checkpoint_attn", "model.checkpoint_ffn"], samples=4)
    machine = Machine(lambda s: 100 - 20 * s["model.checkpoint_attn"] - 20 * s["model.checkpoint_ffn"],
                      lambda s: 20 - 10 * s["model.checkpoint_attn"] - 5 * s["model.checkpoint_ffn"], limit=12)  # fmt: skip
    ladder = climb(machine, space, both)
    assert ladder.changes() == {"model.checkpoint_ffn": False}
    assert any(row.outcome.state == "out of memory" for row in ladder.rows)


def test_a_baseline_that_does_not_fit_is_halved_with_the_same_optimizer_step():
    ladder = Ladder(BASE | {"batch_size": 32}, Machine(lambda s: 100, lambda s: s["batch_size"], limit=10), 1e6)
    assert ladder.start().state == "out of memory"
    assert [(row.setting["batch_size"], row.setting["accumulate"], row.kept) for row in ladder.rows] == [
        (32, 1, False), (16, 2, False), (8, 4, True),
    ]  # fmt: skip
    assert ladder.changes() == {"batch_size": 8, "accumulate": 4} and ladder.compare() is None


def test_accumulated_batches_are_joined_first():
    machine = Machine(lambda s: 100 * min(s["batch_size"], 4))
    ladder = climb(machine, Space([], samples=64), BASE | {"batch_size": 1, "accumulate": 6})
    assert ladder.changes() == {"batch_size": 4, "accumulate": 3}  # 6 in twos are 3; in fours they are not a whole number
    assert {"batch_size": 2, "accumulate": 3} in [row.changed for row in ladder.rows]


def test_no_batch_is_larger_than_the_split():
    ladder = climb(Machine(lambda s: 100 * s["batch_size"]), Space([], samples=13))
    assert [row.setting["batch_size"] for row in ladder.rows[-2:]] == [8, 13] and ladder.changes()["batch_size"] == 13


def test_workers_and_prefetch():
    machine = Machine(lambda s: 100 * (1 + min(s["workers"], 2)) + 10 * (s["workers"] > 0 and s["prefetch"] > 2))
    ladder = climb(machine, Space([], workers=[1, 2, 4, 8, 16], samples=4))
    assert ladder.changes() == {"workers": 2, "prefetch": 4}
    assert [row.changed["workers"] for row in ladder.rows if "workers" in row.changed] == [1, 2, 4, 8]


def test_the_baseline_is_measured_whatever_the_budget():
    ladder = climb(Machine(lambda s: 100), Space([]), budget=1e-9)
    assert [row.changed for row in ladder.rows] == [{}] and ladder.rows[0].kept and "tune_budget_minutes" in ladder.stopped


def test_the_budget_bounds_the_climb_and_leaves_time_for_the_comparison():
    machine = Machine(lambda s: 100 * s["batch_size"], limit=1e9)
    ladder = climb(machine, Space([], samples=2**30), budget=20)
    assert "tune_budget_minutes" in ladder.stopped and machine.now <= 20 - 4 + 1
    assert ladder.compare()["ratio"] > 1 and machine.now <= 21
    measured = len(machine.asked)
    ladder.climb(Space(["bf16"]))
    assert len(machine.asked) == measured, "no time is left"


def test_a_time_limit_comes_with_each_measurement():
    limits = []
    machine = Machine(lambda s: 100, seconds=3.0)
    ladder = Ladder(BASE, lambda s, seconds: limits.append(seconds) or machine(s, seconds), 10_000, clock=lambda: machine.now)
    ladder.start()
    ladder.climb(Space([], samples=4, layouts=[False]))
    assert limits == [10_000, 5 * 3 + 60, 5 * 3 + 600]  # the baseline, channels_last, compile


def test_what_turns_out_slower_in_the_end_is_given_up():
    tries = Counter()

    def rate(setting):
        tries[setting["precision"]] += 1
        return 200 if setting["precision"] == "bf16" and tries["bf16"] <= 3 else 100 if setting["precision"] == "fp32" else 90

    ladder = climb(Machine(rate))
    assert ladder.changes() == {"precision": "bf16"}
    assert ladder.compare()["ratio"] == 0.9 and ladder.changes() == {}


def test_a_baseline_that_never_ran_is_not_measured_again():
    machine = Machine(lambda s: 100, lambda s: s["batch_size"], limit=10)
    ladder = climb(machine, Space([], samples=64), BASE | {"batch_size": 16})
    before = len(machine.asked)
    assert ladder.compare() is None and ladder.broken is None and len(machine.asked) == before
    assert ladder.changes() == {"batch_size": 8, "accumulate": 2}


@pytest.mark.parametrize("turn", [1, 2])
def test_what_does_not_run_in_the_end_is_given_up(turn):
    tries = Counter()

    def rate(setting):
        tries[setting["precision"]] += 1
        return 100 if setting["precision"] == "fp32" else None if tries["bf16"] == last else 200

    last = -1
    ladder = climb(Machine(rate))
    assert ladder.changes() == {"precision": "bf16"}
    last = tries["bf16"] + turn
    assert ladder.compare() is None and ladder.changes() == {} and ladder.final is None
    assert ladder.broken == {"which": "tuned", "setting": {"precision": "bf16"}, "state": "failed", "reason": "no"}


def test_a_baseline_that_does_not_run_in_the_end_changes_nothing():
    broken = False
    ladder = climb(Machine(lambda s: None if broken and s["precision"] == "fp32" else 100 * (1 + (s["precision"] == "bf16"))))
    broken = True
    assert ladder.compare() is None and ladder.changes() == {"precision": "bf16"}
    assert ladder.broken == {"which": "baseline", "setting": {}, "state": "failed", "reason": "no"}


def test_each_value_of_compile_is_tried_but_the_one_in_force():
    space = Space([], samples=4, compiles=(False, True, "reduce-overhead"))
    ladder = climb(Machine(lambda s: {False: 100, True: 90, "reduce-overhead": 300}[s["compile"]]), space, BASE | {"compile": True})
    assert [row.changed for row in ladder.rows][:3] == [{}, {"compile": False}, {"compile": "reduce-overhead"}]
    assert ladder.changes() == {"compile": "reduce-overhead"}


def test_a_ctrl_c_leaves_the_rows():
    machine = Machine(lambda s: 100)

    def measure(setting, seconds):
        if setting["compile"]:
            raise KeyboardInterrupt
        return machine(setting, seconds)

    ladder = Ladder(BASE, measure, 1e6)
    ladder.start()
    with pytest.raises(KeyboardInterrupt):
        ladder.climb(Space([], samples=64, layouts=[False]))
    assert [row.changed for row in ladder.rows] == [{}, {"channels_last": False}]
