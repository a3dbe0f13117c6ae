"""Named parts of real networks: what is hooked, what runs again, what is compiled; and the exchange of gradients between processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from snnexp.trackers.timing import spans as timing_spans
from snnexp.trackers.timing.spans import HostClock, Spans
from snnexp.trackers.timing.tracker import attach, timed


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


class Net(nn.Module):
    """A stem, a list of stages (run again in the backward pass if `again`), and a head that is called twice."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.stem, self.stages, self.head = nn.Linear(4, 4), nn.ModuleList([Stage(), Stage()]), nn.Linear(4, 4)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = checkpoint(stage, x, use_reentrant=False) if self.again else stage(x)
        return self.head(self.head(x))


@pytest.fixture
def spans(monkeypatch) -> Spans:
    spans = Spans(HostClock())
    monkeypatch.setattr(timing_spans, "running", spans)
    return spans


def calls(spans: Spans, net: nn.Module, backward: bool = False) -> dict[str, int]:
    """Calls of each part in a step of a network."""
    with timed("step"):
        with timed("loss"):
            loss = net(torch.ones(2, 4)).sum()
        with timed("backward"):
            if backward:
                loss.backward()
    (_,) = spans.settle()
    return {node.path: node.calls for node in spans.root.walk() if node.inclusive}


OUTER = {"step": 1, "loss": 1, "backward": 1, "forward": 1}


@pytest.mark.parametrize(
    ("depth", "parts"),
    [
        (0, {}),
        (1, {"stem": 1, "stages": 2, "head": 2}),
        (2, {"stem": 1, "stages": 0, "stages/0": 1, "stages/1": 1, "head": 2}),
        (
            3,
            {"stem": 1, "stages": 0, "head": 2}
            | {f"stages/{n}{rest}": 1 for n in (0, 1) for rest in ("", "/norm", "/linear")},
        ),
    ],
)  # fmt: skip
def test_parts_down_to_a_depth(spans, depth, parts):
    net = Net()
    detach = attach(net, depth)
    assert calls(spans, net) == OUTER | {f"forward/{name}": number for name, number in parts.items()}
    detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert calls(spans, net) == {"step": 1, "loss": 1, "backward": 1}


def test_blocks_that_run_again_are_told_under_backward(spans):
    plain, again = Net(), Net(again=True)
    again.load_state_dict(plain.state_dict())
    attach(plain, 2)
    attach(again, 3)
    once = calls(spans, plain, backward=True)
    seen = calls(spans, again, backward=True)
    assert not any(name.startswith("backward/") for name in once)
    forward = {name: number for name, number in seen.items() if name.startswith("forward")}
    assert forward == {name: number for name, number in calls(spans, again).items() if name.startswith("forward")}
    assert seen["forward/stages/0"] == seen["forward/stages/1"] == 1
    assert seen["backward/recompute/stages/0"] == seen["backward/recompute/stages/1"] == 1
    # The last call is left by an exception as soon as all is there that the gradients need; the next block is not told inside it.
    assert "backward/recompute/stages/1/linear" in seen and "backward/recompute/stages/1/stages" not in seen
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_module_that_fails_leaves_the_stack_as_it_was(spans):
    net = Net()
    attach(net, 2)
    with timed("step"):
        with timed("loss"), pytest.raises(RuntimeError):
            net(torch.ones(2, 5))
        with timed("backward"):
            pass
    (_,) = spans.settle()
    assert [node.path for node in spans.root.walk() if node.calls] == ["step", "forward", "forward/stem", "loss", "backward"]


def test_a_compiled_network_is_one_part_and_not_compiled_again(spans):
    counter = CompileCounter()
    net = Net()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    detach = attach(compiled, 2)
    for _ in range(3):
        assert calls(spans, compiled) == OUTER
    detach()
    assert calls(spans, compiled) == {"step": 1, "loss": 1, "backward": 1} and counter.frame_count == 1


def test_a_compiled_part_is_one_part(spans):
    net = Net()
    net.stages[0] = torch.compile(net.stages[0], backend="eager", fullgraph=True)
    attach(net, 3)
    seen = calls(spans, net)
    assert seen["forward/stages/0"] == 1 and "forward/stages/0/linear" not in seen and seen["forward/stages/1/linear"] == 1


def test_hooks_inside_a_compiled_region_do_not_break_it(spans):
    net = Net()
    attach(net, 2)
    whole = torch.compile(net, backend="eager", fullgraph=True)  # a break of the graph is an error
    assert calls(spans, whole) == {"step": 1, "loss": 1, "backward": 1}


RANKS = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from snnexp.trackers.timing import parts, spans as timing_spans
from snnexp.trackers.timing.spans import HostClock, Spans, timed

dist.init_process_group("gloo")
torch.manual_seed(0)
nets = [nn.Sequential(*(nn.Linear(64, 64) for _ in range(6))) for _ in range(2)]
nets[1].load_state_dict(nets[0].state_dict())
plain, watched = (DistributedDataParallel(net, bucket_cap_mb=0.03) for net in nets)
parts.watch_sync(watched)
parts.watch_sync(watched)  # an epoch later
timing_spans.running = spans = Spans(HostClock())
torch.manual_seed(dist.get_rank())
same, steps = True, []
for number in range(4):
    inputs = torch.randn(8, 64)
    for net in (plain, watched):
        net.zero_grad()
        with timed("step"):
            with net.no_sync():
                net(inputs).sin().sum().backward()
            loss = net(inputs).cos().sum()
            with timed("backward"):
                loss.backward()
    for _ in spans.settle():
        sync = spans.root.child("gradient sync")
        steps.append([sync.calls, sync.span_ms, sync.overlapped, spans.root.child("backward").span_ms])
    same = same and all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters()))
if dist.get_rank() == 0:
    print(json.dumps([same, steps]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_cross_as_they_would_and_their_time_is_told(tmp_path):
    world = 3  # 1/3 is not exact: dividing would not be multiplying
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "ranks.py").write_text(RANKS)
    common = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "ranks.py"], cwd=tmp_path, env=common | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    (said, _), *_ = [process.communicate(timeout=120) for process in started]
    same, steps = json.loads(said)
    assert same, "bit for bit"
    plain, watched = steps[::2], steps[1::2]
    assert all(calls == 0 for calls, *_ in plain)
    for calls, exposed, overlapped, backward in watched:
        assert calls == 1 and exposed > 0 and overlapped >= 0 and backward > 0
    assert any(overlapped > 0 for _, _, overlapped, _ in watched)
