"""Stays made here, whose batches are known number by number, and a slow reading of the same rules."""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from snnexp.data.cache import Source
from snnexp.data.stays.medical import MedicalStays, read_embeddings
from snnexp.data.stays.stay_arrays import StayChunk, load_or_build_stays, remove_variables
from snnexp.errors import MissingData, UserError

Event = tuple[float, int, float]
"""Minute, variable, value."""
AGE, HR, TEMP, VENT = range(4)
NAMES = ("Age", "HR", "Temp", "MechVent")
FIRST = [(0, AGE, 50.0), (0, HR, 80.0), (10, HR, 90.0), (20, HR, 100.0), (20, TEMP, 37.0), (20, TEMP, 38.0)]
SECOND = [(5, TEMP, 36.0), (5, VENT, 1.0), (10, HR, 70.0)]
THIRD = [(0, AGE, 70.0), (0, TEMP, 39.0), (3000, HR, 60.0)]


def block(stays: list[list[Event]], y: list[int], describing: list[int]) -> StayChunk:
    events = [event for stay in stays for event in stay]
    minute, variable, value = (np.array([event[k] for event in events]) for k in range(3))
    return StayChunk(
        counts=np.array([len(stay) for stay in stays]),
        describing=np.array(describing),
        variable=variable.astype(np.int64),
        value=value,
        minute=minute,
        group=minute,
        y=np.array(y),
        ids=[str(k) for k in range(len(stays))],
    )


def make_data(
    folder: Path, stays: list[list[Event]], y: list[int], describing: list[int] | None = None, rows=None, **options
) -> MedicalStays:
    """A data set of some stays, all of them for training unless `rows` says otherwise; the first events of minute 0 of AGE describe it."""
    found = describing if describing is not None else [sum(m == 0 and v == AGE for m, v, _ in stay) for stay in stays]
    names = options.pop("variables", NAMES)
    stamp = zlib.crc32(repr((stays, y, found, names)).encode())
    entry = load_or_build_stays(folder, {}, [Source("made", 0, stamp)], lambda notes: [block(stays, y, found)], "made", len(names))
    rows = rows or {"train": np.arange(len(stays)), "val": [], "test": []}
    return MedicalStays(name="made", title="made", words="as drawn", directory=folder, entry=entry, rows=rows, variables=names, **options)


def batch(data: MedicalStays, indices: list[int], split: str = "train"):
    return data.view(split).__getitems__([(0, index) for index in indices])


def three(tmp_path: Path, **options) -> MedicalStays:
    return make_data(tmp_path, [FIRST, SECOND, THIRD], [0, 1, 1], clip=100.0, **options)


RAW = {"given_statistics": {name: (0.0, 1.0) for name in ("Age", "HR", "Temp")} | {"MechVent": (0.0, 1.0)}}


def test_the_batch_of_three_stays_number_by_number(tmp_path: Path) -> None:
    stays, y = batch(three(tmp_path, **RAW), [1, 0, 2])
    assert y.tolist() == [1, 0, 1] and y.dtype == torch.int64
    # Sizes: SECOND has sets of 2 and 1; FIRST of 2, 1, 3; THIRD one of 2, the other is after 48 hours.
    assert stays.runs == [(1, 2), (2, 3), (3, 1)] and all(type(number) is int for run in stays.runs for number in run)
    assert stays.stay.tolist() == [0, 1, 0, 1, 2, 1] and stays.place.tolist() == [1, 1, 0, 0, 0, 2]
    assert stays.minute.tolist() == [10, 10, 5, 0, 0, 20] and stays.lengths.tolist() == [2, 3, 1] and stays.longest == 3
    assert stays.variable.tolist() == [HR, HR, TEMP, VENT, AGE, HR, AGE, TEMP, HR, TEMP, TEMP]
    assert stays.value.tolist() == [70, 90, 36, 1, 50, 80, 70, 39, 100, 37, 38]
    kinds = [getattr(stays, name).dtype for name in ("variable", "value", "minute", "stay", "place", "lengths")]
    assert kinds == [torch.int64, torch.float32, torch.float32, torch.int64, torch.int64, torch.int64]


def test_statistics_are_those_of_the_training_split_before_the_horizon(tmp_path: Path) -> None:
    data = three(tmp_path, logged=["Age"])
    heart = np.array([80.0, 90, 100, 70])  # not the 60 after the horizon
    age, temp = np.log1p([50.0, 70.0]), np.array([37.0, 38, 36, 39])
    assert data.scale.mean.tolist() == pytest.approx([age.mean(), 85, temp.mean(), 0])
    assert data.scale.std.tolist() == pytest.approx([age.std(), heart.std(), temp.std(), 1])
    stays, _ = batch(data, [1])
    assert stays.variable.tolist() == [HR, TEMP, VENT]
    assert stays.value.tolist() == pytest.approx([(70 - 85) / heart.std(), (36 - 37.5) / temp.std(), 1.0])  # what is always 1 stays 1
    assert batch(data, [2])[0].value[0] == pytest.approx((np.log(71) - age.mean()) / age.std())
    assert data.positive == pytest.approx(2 / 3) and data.state_dict()["positive"] == data.positive
    assert make_data(tmp_path, [FIRST], [0], clip=0.5).view("train").__getitems__([(0, 0)])[0].value.abs().max() <= 1.0
    assert batch(make_data(tmp_path, [FIRST, SECOND], [0, 1], clip=0.5), [0, 1])[0].value.abs().max() == 0.5


def test_a_stay_that_is_no_training_stay_changes_no_number_of_the_others(tmp_path: Path) -> None:
    rows = {"train": [0, 1], "val": [], "test": [2]}
    other = [(0, AGE, 1.0), (0, TEMP, -500.0), (7, HR, 1e6), (7, VENT, 0.0)]
    one, two = (make_data(tmp_path / name, [FIRST, SECOND, last], [0, 1, 1], rows=rows) for name, last in (("a", THIRD), ("b", other)))
    assert one.scale.mean.tolist() == two.scale.mean.tolist() and one.scale.std.tolist() == two.scale.std.tolist()
    (a, _), (b, _) = batch(one, [0, 1]), batch(two, [0, 1])
    assert torch.equal(a.value, b.value) and one.positive == two.positive == 0.5
    assert not one.same_samples(two.state_dict()) and one.same_samples(one.state_dict())
    shifted = make_data(tmp_path / "c", [[(m, v, x + 1) for m, v, x in FIRST], SECOND, THIRD], [0, 1, 1], rows=rows)
    assert shifted.scale.mean.tolist() != one.scale.mean.tolist()


@pytest.mark.parametrize(
    ("longest", "left"),
    [
        (6, FIRST),
        (5, [FIRST[0], *FIRST[2:]]),  # Age stays, the other event of its set goes
        (3, [FIRST[0], *FIRST[4:]]),  # the last set loses its first event
        (2, [FIRST[0], FIRST[5]]),
        (1, [FIRST[0]]),
        (None, FIRST),
    ],
)
def test_too_long_a_stay_keeps_its_descriptors_and_its_last_events(tmp_path: Path, longest: int | None, left: list[Event]) -> None:
    data = make_data(tmp_path, [FIRST, SECOND], [0, 1], max_sequence_length=longest, clip=1e3, **RAW)
    stays, _ = batch(data, [0])
    assert sorted(zip(stays.variable.tolist(), stays.value.tolist(), strict=True)) == sorted((v, x) for _, v, x in left)
    assert stays.lengths.tolist() == [len({m for m, _, _ in left})] == data.lengths("train")[:1].tolist()
    assert data.sizes("train")[0] == len(left)
    cut = sum(longest is not None and longest < count for count in (6, 3))
    assert longest is None or f"at most {longest} events of a stay, the last (stays cut: {cut})" in data.protocol


def slowly(stay: list[Event], describing: int, hours: float | None, longest: int | None) -> list[tuple[float, list[tuple[int, float]]]]:
    """The sets (minute, events) of a stay by the rules, event by event."""
    events = [event for event in stay if hours is None or event[0] <= 60 * hours]
    first, rest = events[:describing], events[describing:]
    if longest is not None:
        rest = rest[len(rest) - max(0, min(len(rest), longest - len(first))) :]
    sets: dict[float, list[tuple[int, float]]] = {}
    for minute, variable, value in first + rest:
        sets.setdefault(minute, []).append((variable, np.float32(value)))
    return sorted(sets.items())


@pytest.mark.parametrize(("hours", "longest"), [(48, 1000), (None, None), (0.5, None), (0.75, 7), (None, 5), (1, 1)])
def test_random_stays_as_a_slow_reading_of_the_rules_has_them(tmp_path: Path, hours: float | None, longest: int | None) -> None:
    draw = np.random.default_rng(0)
    stays = []
    for _ in range(40):
        minutes = np.sort(draw.integers(0, draw.integers(2, 90), draw.integers(1, 30)))
        stays.append([(int(m), int(draw.integers(1, 4)), float(draw.normal())) for m in minutes])
    for stay in stays[:30]:
        stay[:0] = [(0, AGE, float(draw.normal()))] * int(draw.integers(1, 4))
    describing = [sum(v == AGE for _, v, _ in stay) for stay in stays]
    data = make_data(tmp_path, stays, [0, 1] * 20, describing, horizon_hours=hours, max_sequence_length=longest, clip=100.0, **RAW)
    expected = [slowly(stay, number, hours, longest) for stay, number in zip(stays, describing, strict=True)]
    there = [sets for sets in expected if sets]
    assert data.lengths("train").tolist() == [len(sets) for sets in there]
    assert data.sizes("train").tolist() == [sum(len(events) for _, events in sets) for sets in there]
    order = draw.permutation(len(there)).tolist()
    found, _ = batch(data, order)
    assert [n for n, _ in found.runs] == sorted({n for n, _ in found.runs}) and found.longest == max(map(len, there))
    rebuilt: list[dict[int, tuple[float, list[tuple[int, float]]]]] = [{} for _ in order]
    event = number = 0
    for size, count in found.runs:
        owners = list(zip(found.stay[number : number + count].tolist(), found.place[number : number + count].tolist(), strict=True))
        assert owners == sorted(owners)
        for owner, place in owners:
            pairs = zip(found.variable[event : event + size].tolist(), found.value[event : event + size].numpy(), strict=True)
            rebuilt[owner][place] = (found.minute[number].item(), list(pairs))
            event, number = event + size, number + 1
    assert (event, number) == (len(found.value), len(found.stay))
    for place, index in enumerate(order):
        assert [rebuilt[place][k] for k in range(len(rebuilt[place]))] == there[index]


def test_the_horizon_includes_its_hour_and_stays_without_events_are_left_out(tmp_path: Path) -> None:
    stays = [[(60, HR, 1.0), (60.5, HR, 2.0)], [(61, HR, 3.0)], [(0, AGE, 4.0), (2, HR, 5.0)]]
    data = make_data(tmp_path, stays, [0, 1, 1], horizon_hours=1)
    assert data.splits == {"train": 2, "val": 0, "test": 0} and data.sizes("train").tolist() == [1, 2]
    assert data.protocol.startswith("made: 2 train / 0 val / 0 test stays, 1 of 2 died; as drawn; events")  # of three, two of whom died
    assert "events up to 1 h (2 later ones left out)" in data.protocol and "1 stays without any event left out" in data.protocol
    assert batch(data, [1])[1].tolist() == [1] and data.positive == 0.5


def test_another_run_lends_its_variables_and_its_statistics(tmp_path: Path) -> None:
    run = three(tmp_path / "run", variables=("Temp2", "HR", "Temp", "MechVent"), describing=[0, 0, 0])
    with pytest.raises(UserError, match=r"made in .* has 1 variables that the run was not trained with: Age\. .*dataset.strict=false"):
        three(tmp_path / "own").load_state_dict(run.state_dict())
    data = make_data(tmp_path / "own", [FIRST, SECOND, THIRD, [(0, AGE, 33.0)]], [0, 1, 1, 0], strict=False)
    data.load_state_dict(run.state_dict())
    assert data.variables == run.variables and data.provides["num_variables"] == 4 and data.positive == run.positive
    assert data.splits["train"] == 3 and data.lengths("train").tolist() == [3, 2, 1] and data.sizes("train").tolist() == [5, 3, 1]
    assert data.protocol.startswith("made: 3 train / 0 val / 0 test stays, 2 of 3 died; ")
    assert "; 3 events of variables unknown to the run (Age) left out, with them 1 stays that have no others" in data.protocol
    stays, _ = batch(data, [0, 2])
    assert [run.variables[number] for number in stays.variable.tolist()] == ["HR", "HR", "Temp", "HR", "Temp", "Temp"]
    assert stays.value[0].item() == pytest.approx((80 - 85) / np.std([80, 90, 100, 70]))
    assert torch.equal(torch.from_numpy(data.scale.std), run.state_dict()["std"])

    turned = make_data(tmp_path / "turned", [FIRST], [0], clip=100.0)
    state = turned.state_dict() | {
        "variables": list(NAMES[::-1]),
        "mean": torch.tensor([0.0, 1, 2, 3]),
        "std": torch.ones(4),
        "log": [0] * 4,
    }
    turned.load_state_dict(state)
    stays, _ = batch(turned, [0])
    assert stays.variable.tolist() == [2, 3, 2, 2, 1, 1] and stays.value.tolist() == [88, 47, 78, 98, 36, 37]
    with pytest.raises(UserError, match="trained on the classes home, away"):
        turned.load_state_dict(state | {"classes": ["home", "away"]})


def test_taking_variables_out_is_as_if_they_had_never_been(tmp_path: Path) -> None:
    stays = [FIRST, SECOND, THIRD, [(1, HR, 2.0)]]
    left = [[event for event in stay if event[1] != HR] for stay in stays]
    entry = make_data(tmp_path / "all", stays, [0, 1, 1, 0]).stored
    wanted = make_data(tmp_path / "left", left, [0, 1, 1, 0]).stored
    for name, array in remove_variables(entry, np.arange(4) == HR).items():
        assert array.tolist() == wanted[name].tolist(), name


def test_the_digests_of_earlier_runs_remain(tmp_path: Path) -> None:
    assert three(tmp_path).digests["train"] == "e27c2e75264d56eb"  # as when the descriptors were counted in a byte


def test_stays_with_one_outcome_say_that_there_is_nothing_to_learn(tmp_path: Path) -> None:
    rows = {"train": [0, 1], "val": [], "test": [2]}
    message = " of the training split died: AUROC is not defined and nothing can be learned; as drawn"
    for y, who in (([0, 0, 1], "1 of 3 died; no stay"), ([1, 1, 0], "2 of 3 died; every stay")):
        data = make_data(tmp_path, [FIRST, SECOND, THIRD], y, rows=rows)
        assert data.protocol.startswith(f"made: 2 train / 0 val / 1 test stays, {who}{message}") and data.positive == y[0]
    assert "learned" not in make_data(tmp_path, [FIRST, SECOND, THIRD], [0, 1, 1], rows=rows).protocol
    assert "learned" not in make_data(tmp_path, [FIRST], [0], rows={"train": [], "val": [], "test": [0]}).protocol


def test_more_descriptors_than_a_byte_counts_are_all_kept(tmp_path: Path) -> None:
    stay = [(0, AGE, float(k)) for k in range(300)] + [(5, HR, 70.0), (6, HR, 71.0)]
    data = make_data(tmp_path, [stay], [0], max_sequence_length=301)
    assert data.stored["describing"].tolist() == [300] and data.sizes("train").tolist() == [301] and data.lengths("train").tolist() == [2]


def test_a_stay_is_known_again_by_its_own_events_alone(tmp_path: Path) -> None:
    rows = {"train": [0], "val": [1], "test": [2]}
    run = make_data(tmp_path / "run", [FIRST, SECOND, THIRD], [0, 1, 1], rows=rows)
    names = [zlib.crc32(name.encode()) for name in NAMES]
    known = [
        (len(stay) << 32) + zlib.crc32(b"".join(struct.pack("<Iff", names[v], x, m) for m, v, x in stay)) for stay in (FIRST, SECOND, THIRD)
    ]
    assert run.fingerprints.tolist() == known
    state = run.state_dict()
    assert state["seen"].tolist() == sorted(known[:2]) and state["seen"].dtype == torch.int64
    assert [run.seen_before(state, split) for split in ("train", "val", "test", "all")] == [1, 1, 0, 2]

    # Elsewhere: another order, other numbers of variables, other outcomes, another horizon; one differs in one value, one is empty.
    turned = [[(m, 3 - v, x) for m, v, x in stay] for stay in (THIRD, SECOND, [*FIRST[:-1], (20, TEMP, 38.5)], [], FIRST)]
    options = {"variables": NAMES[::-1], "describing": [0] * 5, "horizon_hours": 0.25, "max_sequence_length": 2, "strict": False}
    data = make_data(tmp_path / "other", turned, [0] * 5, rows={"train": [], "val": [0], "test": [1, 2, 3, 4]}, **options)
    assert data.splits["test"] == 3 and [data.seen_before(state, split) for split in ("train", "val", "test", "all")] == [0, 0, 2, 2]
    data.load_state_dict(state | {name: state[name][1:] for name in ("variables", "mean", "std", "log")})  # leaves Age out of these data
    assert "(Age) left out" in data.protocol and data.seen_before(state, "test") == 2

    with pytest.raises(UserError, match="split is 'validation'"):
        data.seen_before(state, "validation")


def test_vectors_of_names_follow_the_variables(tmp_path: Path) -> None:
    table = tmp_path / "cached.csv"
    table.write_text("variable,0,1\nTemp,3,-3\nAge,1,-1\nHR,2,-2\nother,9,9\nMechVent,4,-4\n")
    data = make_data(tmp_path, [FIRST], [0], embeddings=table)
    assert data.provides["embeddings"].tolist() == [[1, -1], [2, -2], [3, -3], [4, -4]]
    data.load_state_dict(data.state_dict() | {"variables": list(NAMES[::-1])})
    assert data.provides["embeddings"].tolist() == [[4, -4], [3, -3], [2, -2], [1, -1]]
    assert make_data(tmp_path, [FIRST], [0]).provides["embeddings"] is None
    table.write_text("Temp,3,-3\nAge,1,-1\n")
    with pytest.raises(UserError, match=r"no vector of HR, MechVent \(2 of 4 variables\)"):
        make_data(tmp_path, [FIRST], [0], embeddings=table)
    for content, message in (
        ("Temp,3\nAge,x\n", ":2: a value of 'Age' is no number"),
        ("Temp,3\nAge,1,2\n", ":2: 'Age' has 2 numbers, not 1"),
        ("Temp,3\nAge,1_0\n", ":2: a value of 'Age' is no number of 32 bits"),
        ("Temp,3\nAge,1e39\n", ":2: a value of 'Age' is no number"),
        ("Temp,3,O.5\nAge,1,2\n", ":1: a value of 'Temp' is no number of 32 bits .'O.5'"),
        ("Temp,3\nTemp,4\n", ":2: 'Temp' is there twice"),
        ("Temp;3\n", ":1: 'Temp;3' has 0 numbers, but needed is a name"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=message):
            read_embeddings(table)
    with pytest.raises(MissingData, match="no such file"):
        read_embeddings(tmp_path / "none.csv")


def test_a_batch_moves_and_a_view_goes_to_a_worker_as_a_name(tmp_path: Path) -> None:
    data = three(tmp_path)
    view = data.view("all")
    copied = pickle.dumps(view)
    assert data.entry.directory.name.encode() in copied and b"event_offsets" not in copied
    (stays, y), (again, _) = view.__getitems__([(0, 1)]), pickle.loads(copied).__getitems__([(0, 1)])
    assert torch.equal(stays.value, again.value) and stays.runs == again.runs
    moved = stays.to("meta", non_blocking=True)
    assert moved.value.is_meta and moved.lengths.is_meta and moved.runs == stays.runs and moved.longest == stays.longest
    assert data.prepare((stays, y)) == (stays, y) and data.shape == ("S", "E", 4) and data.classes == ("survived", "died")


@pytest.mark.parametrize("option", ["horizon_hours", "max_sequence_length", "clip"])
def test_an_option_out_of_range_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"dataset.{option} is 0; allowed are numbers above 0"):
        make_data(tmp_path, [FIRST], [0], **{option: 0})
    with pytest.raises(UserError, match="split is 'validation'; allowed are train, val, test and all"):
        make_data(tmp_path, [FIRST], [0]).view("validation")


def test_a_variable_that_training_never_saw_stays_as_it_is(tmp_path: Path) -> None:
    data = make_data(tmp_path, [SECOND, [(1, AGE, 4.0)]], [0, 1], rows={"train": [0], "val": [], "test": [1]})
    assert batch(data, [0], "test")[0].value.tolist() == [4.0]
    nobody = make_data(tmp_path, [SECOND, THIRD], [1, 1], rows={"train": [], "val": [], "test": [0, 1]})
    assert nobody.positive == 0.0 and nobody.scale.mean.tolist() == [0] * 4 and len(nobody.view("test")) == 2
