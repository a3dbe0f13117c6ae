"""The form of a model that the training step calls, and the kernels that it may take."""

import os
from types import SimpleNamespace

import pytest
import torch
from spikingjelly.activation_based import functional
from torch._dynamo.testing import CompileCounterWithBackend

from snnexp.engine.distributed import Ranks
from snnexp.engine.experiment import restore_kernels, set_determinism, training_form
from snnexp.models.vggsnn import VGGSNN

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(("world", "moved"), [(2, True), (3, False)])
def test_with_three_processes_a_gradient_keeps_its_place_after_the_first_step(world, moved, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        config = SimpleNamespace(compile=False, deterministic=False)
        net = training_form(torch.nn.Linear(2, 2), config, Ranks(0, world, torch.device("cpu")))
        net(torch.ones(1, 2)).sum().backward()
        assert net.reducer._rebuild_buckets() is moved
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("given", "used"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_deterministic_kernels_only(given, used, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given or "")
    if given is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with restore_kernels():
        for wanted in (True, False):
            set_determinism(wanted)
            assert torch.are_deterministic_algorithms_enabled() == wanted != torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == used


def test_a_model_of_fixed_shape_has_programs_for_full_and_for_smaller_batches_in_training_and_in_evaluation(monkeypatch):
    torch.compiler.reset()
    counter, compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile(model, backend=counter, fullgraph=True, **options))
    model = VGGSNN(in_channels=2, num_classes=3, size=16, T=2, width=0.125)
    net = training_form(model, SimpleNamespace(compile=True), ALONE)
    graphs = []
    for training in (True, False):
        net.train(training)
        for samples in (4, 4, 3, 4, 3):
            with torch.set_grad_enabled(training):
                net(torch.rand(2, samples, 2, 16, 16))
            functional.reset_net(model)
            graphs.append(counter.frame_count)
    assert graphs == [1, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    assert not any(isinstance(size, torch.SymInt) for graph in counter.graphs for node in graph.graph.nodes for size in shape_of(node))


def shape_of(node):
    value = node.meta.get("example_value")
    return value.shape if isinstance(value, torch.Tensor) else ()
