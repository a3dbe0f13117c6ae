"""Classes of a user's own against their contracts: what they lack is said at once, and what they leave out they get."""

import multiprocessing
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import composed
from snnexp import conformance, contracts, parts, targets
from snnexp.composing.conf import conf_dir
from snnexp.contracts import CONTRACTS, OPTIONAL_CONTRACTS, DataSet, Logger, Schedule, Task, Tracker
from snnexp.engine.measures.latents import Latents
from snnexp.engine.schedule import Constant, Plateau
from snnexp.errors import UserError

OWN = '''
class Nothing:
    pass
class Half:
    splits = {"train": 4, "val": 0, "test": 0}
    def __init__(self): self.provides, self.protocol = {}, "half"
    def shape(self): return (1, 4, 4)
    def view(self, split): return []
class Whole:
    def __init__(self, late=True):
        self.shape, self.provides, self.protocol, self.splits = (1, 4, 4), {}, "whole", {"train": 4, "val": 0, "test": 0}
        self.view = lambda split, augment=False: [split, augment]
        if late:
            self.name = "mine"
class Late(Whole):
    def __init__(self, late=False):
        if late: super().__init__()
class Around:
    def __init__(self): self.inner = Whole()
    def __getattr__(self, name): return getattr(self.inner, name) if name != "inner" else None
class Looking:
    def observe(self, split): ...
class Loss:
    monitor, modes = "Acc1", {"Acc1": "max"}
    def outputs(self, data): return 2
    def loss(self, model, batch, t): return 0, 0
    def counts(self, loss, output, batch): return {}
    def metrics(self, counts): return {}
    def predict(self, output, batch): return (1, 2)
'''  # fmt: skip


@pytest.fixture
def own(monkeypatch):
    """A user's module that inherits from nothing of ours."""
    module = types.ModuleType("own_classes")
    exec(OWN, module.__dict__)
    monkeypatch.setitem(sys.modules, "own_classes", module)
    return module


def refused(path: str, target: type, contract: type) -> str:
    with pytest.raises(UserError) as error:
        conformance.check_class(path, target, contract)
    return str(error.value)


def test_all_that_a_class_lacks_is_one_message_with_signatures(own):
    said = refused("dataset", own.Nothing, DataSet)
    assert said.startswith("dataset._target_=own_classes.Nothing: not a dataset; it lacks\n")
    wanted = ("shape: tuple[Any, ...]", "provides: Mapping[str, Any]", "splits: ", "protocol: str")
    for line in (*wanted, "view(split: str, augment: bool = False) -> View"):
        assert f"\n  {line}" in said, said
    assert "state_dict" not in said and "docs/extending.md" in said  # what may be left out is not asked for
    assert "not a tracker; it lacks\n  observe(split: str) -> None\n" in refused("tracker.mine", own.Nothing, Tracker)
    with pytest.raises(UserError, match="not a task; it lacks"):
        targets.check_nodes({"task": {"_target_": "own_classes.Nothing"}})


def test_a_method_that_should_be_an_attribute_and_one_with_other_arguments_are_told(own):
    said = refused("dataset", own.Half, DataSet)
    assert "shape: tuple[Any, ...], which is a method here: make it an attribute, or a @property" in said
    assert "view(split: str, augment: bool = False) -> View, which is view(self, split) here" in said
    assert said.count("\n  ") == 2
    assert "loss(model: nn.Module, batch: Any, step: int)" in refused("task", own.Loss, Task)  # it is called with step=
    own.Half.view = lambda self, split, augment: []
    assert "which is view(self, split, augment) here" in refused("dataset", own.Half, DataSet)  # it is also called without augment=


def test_what_a_constructor_sets_counts(own):
    conformance.check_class("dataset", own.Whole, DataSet)
    conformance.check_class("dataset", own.Around, DataSet)
    made = parts.instantiate({"_target_": "own_classes.Whole"}, None, DataSet)
    assert isinstance(made, own.Whole) and made.name == "mine" and made.view("val") == ["val", False]
    with pytest.raises(UserError, match="not a dataset; it lacks\n  shape: .*\n  provides: .*\n  splits: .*\n  protocol: str\n  view"):
        parts.instantiate({"_target_": "own_classes.Late"}, None, DataSet)  # it has promised to set them


def test_a_class_that_inherits_has_to_do_what_has_no_default():
    class Lazy(DataSet):
        shape, provides, splits = (1,), {}, {}

    assert "it lacks\n  protocol: str\n  view(" in refused("dataset", Lazy, DataSet)


def test_whoever_does_not_inherit_has_the_defaults_all_the_same(own):
    data = parts.instantiate({"_target_": "own_classes.Whole"}, None, DataSet)
    assert (data.classes, data.node_budget, data.lengths("train"), data.kind) == ((), None, None, None)
    assert data.prepare("batch") == "batch" and data.telling_part("test") == ["test", False]
    assert data.same_samples(data.state_dict()) and not data.same_samples({"samples": {"train": 3, "val": 0, "test": 0}})
    around = parts.instantiate({"_target_": "own_classes.Around"}, None, DataSet)
    assert around.name == "mine" and around.targets == ()  # what it wraps comes first
    tracker = parts.instantiate({"_target_": "own_classes.Looking"}, None, Tracker)
    assert tracker.stepped(1) == {} and tracker.finish() == tracker.rows() == [] and not tracker.news
    with tracker.listening(nn.Linear(1, 1), None):
        tracker.load_state_dict(tracker.state_dict())
    with pytest.raises(AttributeError, match="'Looking' object has no attribute 'nothing'"):
        tracker.nothing  # noqa: B018  looking it up is what raises


def test_what_a_class_does_itself_and_what_it_leaves_to_the_default(own):
    class Falling:
        def factor(self, done, epochs):
            return 1 - done / epochs

    own.Falling = Falling
    falling = parts.instantiate({"_target_": "own_classes.Falling"}, None, Schedule)
    assert not conformance.overrides(falling, Schedule, "observe") and not conformance.overrides(Constant(), Schedule, "observe")
    assert conformance.overrides(falling, Schedule, "factor") and conformance.overrides(Plateau(), Schedule, "observe")


def test_it_can_go_to_a_process_that_is_started_anew(own):
    copy = pickle.loads(pickle.dumps(parts.instantiate({"_target_": "own_classes.Looking"}, None, Tracker)))
    assert isinstance(copy, own.Looking) and copy.finish() == []
    assert multiprocessing.reduction.ForkingPickler.dumps(copy)


@pytest.mark.parametrize("group", ["dataset", "model", "task", "tracker", "logger", "scheduler", "optimizer", "pruner"])
def test_ours_keep_their_contracts(group):
    contract = (CONTRACTS | OPTIONAL_CONTRACTS)[group]
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        for name in re.findall(r"_target_: (\S*\w)", path.read_text()):
            if name == "null":
                continue
            target, kept = targets.locate(name, trust=None), OPTIONAL_CONTRACTS["pruner.criterion"] if ".scores." in name else contract
            assert group == "optimizer" or issubclass(target, kept), path
            conformance.check_class(group, target, kept)


def test_optional_members_are_asked_for_in_one_place():
    package = Path(contracts.__file__).parent
    all_contracts = (CONTRACTS | OPTIONAL_CONTRACTS).values()
    members = {name for contract in all_contracts for name in vars(contract) if not name.startswith("_")}
    members |= {"posterior", *(name for contract in all_contracts for name in contract.__annotations__)}
    asked = [
        f"{path.relative_to(package)}: {call[0]}"
        for path in sorted(package.rglob("*.py"))
        for call in re.finditer(r"""(?:has|get)attr\(([\w.\[\]]+), ["'](\w+)["']""", path.read_text())
        if call[2] in members and path.name != "contracts.py" and call[1] not in ("module", "self._run")  # torch's layers, wandb's run
    ]
    assert asked == []


def test_what_a_model_offers_and_what_stands_for_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.posterior = nn.Linear(2, 2)

    model = Net()
    assert contracts.optional_member(model, "published") == () and contracts.optional_member(model, "deterministic_on_cuda")
    assert contracts.optional_member(model, "channel_groups") is None and not contracts.is_variational(model)
    assert not Latents(model, DataSet(), "test", 1, None).wanted
    model.posterior = None
    assert not contracts.is_variational(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("kind", "node", "taken"),
    [
        ("vggsnn.VGGSNN", {}, ("frames",)),
        ("spiking_gnn.SpikingGNN", {}, ("graphs",)),
        ("seqset_vae.seqset_vae.SeqSetVAE", {}, ("stays",)),
        ("svrt.vrt.VRT", {}, ("video",)),
        ("vggsnn.VGGSNN", {"in_channels": 3, "num_classes": 2, "size": 32}, tuple(contracts.KINDS)),  # nothing is left to the data
    ],
)
def test_which_data_a_model_takes(kind, node, taken):
    assert targets.kinds_of_model(targets.locate(f"snnexp.models.{kind}", trust=[]), node) == taken


class Silent(Logger):
    def scalars(self, values, epoch): ...


def test_a_logger_needs_one_verb():
    logger = Silent()
    assert logger.step_scalars({}, 1) is logger.hparams({}) is logger.upload(Path()) is logger.finish({}) is logger.close() is None
    with pytest.raises(UserError, match="Logger does not define scalars, which snnexp.contracts.Logger requires"):
        Logger().scalars({}, 1)


def test_a_model_that_is_no_module_and_a_task_without_modes(own, data_dir):
    whole = composed("dataset=digits", f"data_dir={data_dir}") | {"trust": None}
    data, task = parts.make_data(whole), parts.make_task(whole)
    own.Net = type("Net", (), {"forward": lambda self, x: x, "state_dict": lambda self: {}})
    with pytest.raises(UserError, match="own_classes.Net is no torch.nn.Module"):
        parts.make_model(whole | {"model": {"_target_": "own_classes.Net"}}, data, task)
    own.Loss.modes, own.Loss.loss = {}, lambda self, model, batch, step: (torch.zeros(()), torch.zeros(1))
    with pytest.raises(UserError, match="modes says neither max nor min of Acc1"):
        parts.make_task(whole | {"task": {"_target_": "own_classes.Loss"}})
