"""What torch.compile is asked for, where it is used, and what is refused before a run."""

import pytest
import torch

from conftest import TINY, composed
from snnexp.check import check
from snnexp.engine import loop
from snnexp.engine.arithmetic import compiled as module
from snnexp.engine.arithmetic.compiled import check_compile, compiled
from snnexp.engine.signals import StopFlag
from snnexp.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Asked(torch.nn.Module):
    """Stands for a compiled network; it counts its calls."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options, self.modes = model, options, []

    def forward(self, *inputs):
        self.modes.append("train" if self.training else "eval")
        return self.model(*inputs)


@pytest.fixture
def torch_compile(monkeypatch):
    monkeypatch.setattr(torch, "compile", Asked)


def test_what_torch_is_asked_for(torch_compile, monkeypatch):
    passes = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: passes.append("begun"))
    model = torch.nn.Linear(1, 1)
    assert compiled(model, False) is model
    assert compiled(model, True).options == {"dynamic": False, "mode": None}
    net = compiled(model, "reduce-overhead")
    assert net.options == {"dynamic": False, "mode": "reduce-overhead"}
    net(torch.ones(1, 1)), compiled(model, True)(torch.ones(1, 1))
    assert passes == ["begun"], "each pass of a CUDA graph, and no other, is told to begin"
    model.shapes_vary = True
    assert compiled(model, True).options == {"dynamic": None, "mode": None}


def test_the_hook_of_a_compiled_network_runs_in_each_pass(monkeypatch):
    compile, passes = torch.compile, []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: passes.append("begun"))
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, mode: compile(model, backend="eager", dynamic=dynamic))
    net = compiled(torch.nn.Linear(1, 1), "reduce-overhead")
    for _ in range(3):
        net(torch.ones(1, 1))
    assert len(passes) == 3


def test_training_validation_and_test_call_the_compiled_network(torch_compile, make, monkeypatch):
    eager = []
    x = make(*TINY, "compile=true", "epochs=1")
    x.model.register_forward_pre_hook(lambda *_: eager.append(1))
    monkeypatch.setattr(loop.results, "activity_of", lambda *_: None)  # which counts by hooks, on the plain model
    loop.train(x, StopFlag())
    assert x.evaluated_net is x.net and {"train", "eval"} == set(x.net.modes) and len(x.net.modes) == len(eager)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "compile=reduce-overhead replays CUDA graphs, so it needs a CUDA device; on a CPU use compile=true or false"),
        (["model=spiking_gnn"], "with model=spiking_gnn nearly every batch has one of its own. Use compile=true or false"),
        (["accumulate=2"], "accumulate=2 with compile=reduce-overhead: .*Use accumulate=1, or compile=true"),
    ],
)
def test_cuda_graphs_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_compile(composed(*settings, "compile=reduce-overhead"), CUDA if settings else CPU)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_compiler_that_is_missing_is_told_before_the_data_are_prepared(device, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "why_no_triton", lambda: "Failed to find C compiler")
    why = "Failed to find C compiler" if device is CUDA else r"No working C\+\+ compiler"
    with pytest.raises(UserError, match=f"compile=true: torch.compile does not work here: {why}.*use compile=false"):
        check_compile(composed("compile=true"), device)
    check_compile(composed("compile=false"), device)
    if device is CPU:
        with pytest.raises(UserError, match=why):
            check(composed("compile=true", "dataset.root=/nowhere"), trust=[])
