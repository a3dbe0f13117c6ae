"""Surgery: what is left computes what the whole did with the same channels silent; its shapes, its parameters, and what follows them."""

import copy
import math

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch_geometric.nn import GATConv, GATv2Conv

from pruning.nets import GRAPHS, IMAGES, carriers, count, forward, graphs, halves, network, only
from snnexp.engine.ema import MovingAverage
from snnexp.errors import UserError
from snnexp.models.neurons import LIFNode
from snnexp.models.spikformer import SSA, Spikformer
from snnexp.models.vggsnn import VGGSNN
from snnexp.pruning.surgery import Cut, compose_kept, groups_of, rebuild, silenced


def sizes_of(model: nn.Module) -> dict[str, int]:
    return {group.name: group.size for group in groups_of(model)}


def pruned(model: nn.Module, kept: dict[str, list[int]]) -> tuple[nn.Module, Cut]:
    """A copy of the model without the rest."""
    cut, smaller = Cut(model, kept), copy.deepcopy(model)
    cut.apply(smaller)
    return smaller, cut


@pytest.fixture(scope="module")
def networks() -> dict:
    """Models and inputs, made once; no test changes them."""
    return {name: network(name) for name in (*IMAGES, *GRAPHS)}


@pytest.mark.parametrize("name", [*IMAGES, *GRAPHS])
def test_pruned_network_equals_the_dense_one_with_the_same_channels_silent(networks, name):
    dense, inputs = networks[name]
    kept, sizes = halves(dense), sizes_of(dense)
    assert kept.keys() == carriers(name).keys()
    with torch.no_grad():
        with only(dense, name, kept, sizes, silent=False) as rates:
            whole = forward(dense, inputs)
        assert all(0.01 < rate for rate in rates.values()), rates  # otherwise there is nothing to silence
        for chosen in ({group: units} for group, units in kept.items()):
            with only(dense, name, chosen, sizes):
                expected = forward(dense, inputs)
            assert (whole - expected).abs().max() > 1e-3, chosen
            smaller, _ = pruned(dense, chosen)
            torch.testing.assert_close(forward(smaller, inputs), expected, rtol=0, atol=1e-5)
        with only(dense, name, kept, sizes):
            expected = forward(dense, inputs)
        smaller, _ = pruned(dense, kept)
        result = forward(smaller, inputs)
    assert expected.abs().max() > 0.05 and expected.std() > 0.01
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert sizes_of(smaller) == {group: len(units) for group, units in kept.items()}


@pytest.mark.parametrize("name", [*IMAGES, *GRAPHS])
def test_silenced_is_what_it_says(networks, name):
    dense, inputs = networks[name]
    kept = halves(dense, seed=2)
    hooks = [len(module._forward_hooks) for module in dense.modules()]
    with torch.no_grad():
        with only(dense, name, kept, sizes_of(dense)):
            expected = forward(dense, inputs)
        with silenced(dense, kept):
            result = forward(dense, inputs)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
        assert [len(module._forward_hooks) for module in dense.modules()] == hooks
        with pytest.raises(ZeroDivisionError), silenced(dense, kept):
            raise ZeroDivisionError
    assert [len(module._forward_hooks) for module in dense.modules()] == hooks


@pytest.mark.parametrize("name", IMAGES)
def test_in_training_mode_too_with_the_statistics_of_the_batch(networks, name):
    dense, inputs = copy.deepcopy(networks[name])
    kept = halves(dense, seed=3)
    smaller, cut = pruned(dense, kept)
    dense.train()
    smaller.train()
    with torch.no_grad(), only(dense, name, kept, sizes_of(dense)):
        expected = forward(dense, inputs)
    with torch.no_grad():
        result = forward(smaller, inputs)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    own = smaller.state_dict()
    for entry, value in cut.of_entries(dense.state_dict()).items():  # running statistics that both have moved
        torch.testing.assert_close(own[entry], value, rtol=0, atol=1e-9, msg=entry)


@pytest.mark.parametrize("name", IMAGES)
def test_in_fp32_on_the_neurons_own_kernel(networks, name):
    dense, inputs = copy.deepcopy(networks[name])
    dense, inputs = dense.float(), inputs.float()
    kept = halves(dense, seed=4)
    smaller, _ = pruned(dense, kept)
    with torch.no_grad(), only(dense, name, kept, sizes_of(dense)):
        expected = forward(dense, inputs)
    with torch.no_grad():
        result = forward(smaller, inputs)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*IMAGES, *GRAPHS])
def test_layers_know_their_new_shapes(networks, name):
    dense, _ = networks[name]
    smaller, cut = pruned(dense, halves(dense))
    known = 0
    for module in smaller.modules():
        weight = getattr(module, "weight", None)
        match module:
            case nn.Conv2d():
                assert (module.out_channels, module.in_channels) == weight.shape[:2]
            case nn.Linear():
                assert (module.out_features, module.in_features) == weight.shape
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                assert module.num_features == len(weight) == len(module.bias) == len(module.running_mean) == len(module.running_var)
            case nn.LayerNorm():
                assert tuple(module.normalized_shape) == tuple(weight.shape) == tuple(module.bias.shape)
            case GATConv() | GATv2Conv():
                linear = module.lin if isinstance(module, GATConv) else module.lin_l
                assert module.heads * module.out_channels == len(linear.weight) and module.in_channels == linear.weight.shape[1]
                assert (module.att_src if isinstance(module, GATConv) else module.att).shape == (1, module.heads, module.out_channels)
            case SSA():
                assert module.q[0].out_features == module.heads * 8 == module.proj[0].in_features
            case _ if hasattr(module, "in_channels") and hasattr(module, "out_channels"):  # PyG's layers
                linear = module if weight is not None else next(m for m in module.children() if hasattr(m, "weight"))
                assert (module.out_channels, module.in_channels) == linear.weight.shape
            case _:
                continue
        known += 1
    assert known > 5
    for entry, value in smaller.state_dict().items():
        assert value.is_contiguous() and value.dtype == dense.state_dict()[entry].dtype


def test_a_layout_of_channels_last_stays():
    dense, inputs = network("vggsnn")
    dense = dense.to(memory_format=torch.channels_last)
    smaller, _ = pruned(dense, halves(dense))
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in smaller.modules() if isinstance(m, nn.Conv2d))


def test_parameters_of_spikformer_4_384_by_the_formula():
    torch.manual_seed(0)
    model = Spikformer(in_channels=3, num_classes=10, size=32, T=4)
    before, hidden = count(model), [f"blocks.{i}.mlp.lif1" for i in range(4)]
    assert [sizes_of(model)[name] for name in hidden] == [1536] * 4
    cut = Cut(model, {name: list(range(460, 1536)) for name in hidden})
    cut.apply(model)
    assert before - count(model) == 4 * 460 * 771 == 1_418_640
    for i in range(4):
        for units in (list(range(11)), [unit for unit in range(11) if unit != 5]):  # one head, then another of those left
            rest = count(model)
            heads = model.blocks[i].attention.heads
            Cut(model, {f"blocks.{i}.attention": units}).apply(model)
            assert rest - count(model) == 49_440 and model.blocks[i].attention.heads == heads - 1
    assert count(model) == 9_324_730 - 1_418_640 - 8 * 49_440
    assert [len(block.attention.q[0].weight) for block in model.blocks] == [320] * 4
    with torch.no_grad():
        assert forward(model, torch.randn(2, 3, 32, 32)).shape == (4, 2, 10)


def test_parameters_of_the_others_by_their_formulas():
    def gone(name: str, group: str, number: int) -> int:
        model, _ = network(name)
        before, size = count(model), sizes_of(model)[group]
        Cut(model, {group: list(range(number, size))}).apply(model)
        return before - count(model)

    # Of a convolution: its filter, bias, weight and bias of the norm, and its part of what reads it.
    assert gone("vggsnn", "features.1.lif", 3) == 3 * (9 * 8 + 3 + 9 * 32)
    assert gone("vggsnn", "features.10.lif", 3) == 3 * (9 * 64 + 3 + 2 * 2 * 4)  # read as 2x2 pixels by 4 classes
    assert gone("vggsnn_woap", "features.7.lif", 1) == 9 * 64 + 3 + 2 * 2 * 4
    # Of a stage of ResNet: the second convolutions of three blocks and a shortcut write it; the first of two and of the next stage, and
    # the next shortcut, read it.
    assert gone("resnet19", "blocks.0.lif2", 2) == 2 * (3 * (9 * 16 + 2) + 8 + 2 + 2 * 9 * 16 + 9 * 32 + 32)
    assert gone("resnet19", "blocks.6.lif2", 2) == 2 * (2 * (9 * 64 + 2) + 32 + 2 + 9 * 64 + 32)  # and the hidden layer of 32
    assert gone("resnet19", "stem_lif", 1) == 9 * 3 + 2 + 9 * 16 + 16
    assert gone("resnet19", "fc1_lif", 5) == 5 * (64 + 1 + 4)
    # A feature of Spikformer: two convolutions, and of each of two blocks q, k, v, proj and both of the MLP; the head.
    assert gone("spikformer", "embedding", 1) == 9 * 16 + 2 + 9 * 32 + 9 * 31 + 2 + 2 * (4 * 32 + 3 + 2 * 128 + 3) + 4
    assert gone("spikformer_dvs", "blocks.1.attention", 1) == 3 * 8 * (32 + 2) + 8 * 32  # no bias in q, k, v
    # Of a GNN's hidden layer: weights, bias and norm; and what reads it.
    assert gone("gcn", "gnn_model.lif1", 2) == 2 * (4 + 3 + 12)
    assert gone("sage", "gnn_model.lif2", 2) == 2 * (2 * 12 + 3 + 2 * 12)
    assert gone("gat", "gnn_model.lif1", 1) == 12 * (4 + 2 + 1 + 2) + 12 * 36
    assert gone("gatv2", "gnn_model.lif2", 1) == 12 * (2 * (36 + 1) + 1 + 1 + 2) + 12 * 2 * 12
    assert gone("gin", "output_mlp.0", 4) == 4 * (12 + 1 + 3 * 2)
    assert gone("graphconv", "output_mlp.0", 4) == 4 * (2 * 12 + 1 + 2 + 3 * 2)


@pytest.mark.parametrize("name", ["vggsnn", "resnet19", "spikformer", "gatv2", "gin"])
def test_pruning_twice_is_pruning_once(networks, name):
    dense, inputs = networks[name]
    first, sizes = halves(dense, seed=5), sizes_of(dense)
    skipped = next(iter(first))
    first.pop(skipped)
    twice, _ = pruned(dense, first)
    second = halves(twice, seed=6)
    second.pop(list(second)[-1])
    Cut(twice, second).apply(twice)
    kept = compose_kept(first, second, sizes)
    assert kept.keys() == sizes.keys()
    for group in first.keys() & second.keys():
        assert kept[group] == [first[group][unit] for unit in second[group]]
    once, _ = pruned(dense, kept)
    for entry, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[entry]), entry
    with torch.no_grad():
        assert torch.equal(forward(once, inputs), forward(twice, inputs))


def test_compose_by_hand():
    sizes = {"a": 5, "b": 4, "c": 3}
    assert compose_kept({}, {"a": [1, 3]}, sizes) == {"a": [1, 3]}
    assert compose_kept({"a": [0, 2, 4]}, {"a": [0, 2], "b": [3]}, {"a": 3, "b": 4, "c": 3}) == {"a": [0, 4], "b": [3]}
    assert compose_kept({"a": [0, 2, 4]}, {}, {"a": 3, "b": 4, "c": 3}) == {"a": [0, 2, 4]}


@pytest.mark.parametrize("name", [*IMAGES, "gat", "gin"])
def test_saved_weights_load_into_the_rebuilt_structure(networks, name):
    dense, inputs = networks[name]
    kept = halves(dense, seed=7)
    smaller, _ = pruned(dense, kept)
    other, _ = network(name, seed=9)  # other weights, the same structure
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(smaller.state_dict())
    rebuild(other, kept, "checkpoint.pth")
    other.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        assert torch.equal(forward(other, inputs), forward(smaller, inputs))


@pytest.mark.parametrize(
    "kept",
    [{"features.2.lif": [0]}, {"features.0.lif": []}, {"features.0.lif": [0, 8]}, {"features.0.lif": [-1, 2]}, {"features.0.lif": [1, 1]}],
)
def test_a_record_that_does_not_fit_is_refused(kept):
    model = network("vggsnn")[0]
    before = {entry: value.clone() for entry, value in model.state_dict().items()}
    with pytest.raises(UserError, match="RUN/checkpoint.pth.*features.*VGGSNN"):
        rebuild(model, kept, "RUN/checkpoint.pth")
    assert all(torch.equal(value, before[entry]) for entry, value in model.state_dict().items())


def test_a_model_that_declares_nothing_is_refused():
    class Empty(nn.Module):
        def channel_groups(self) -> list:
            return []

    for model in (nn.Linear(2, 2), Empty()):
        with pytest.raises(UserError, match=f"{type(model).__name__}.*channel_groups"):
            groups_of(model)


def test_a_group_that_keeps_all_its_units_is_as_it_was(networks):
    dense, _ = networks["spikformer"]
    smaller, cut = pruned(dense, {group: list(range(size)) for group, size in sizes_of(dense).items()})
    assert not cut.indices and all(torch.equal(value, dense.state_dict()[entry]) for entry, value in smaller.state_dict().items())


def test_modules_stay_the_same_objects_and_parameters_keep_what_they_require():
    model = network("vggsnn")[0]
    model.features[1].conv[0].weight.requires_grad_(False)
    modules, names = list(model.modules()), list(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    Cut(model, halves(model)).apply(model)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True)) and list(model.state_dict()) == names
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, nn.Parameter) and parameter.is_leaf
        assert parameter.requires_grad == (name != "features.1.conv.0.weight")
        assert parameter.grad is None or parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("name", [*IMAGES, "gcn", "gin", "gat", "gatv2", "sage", "graphconv", "ann"])
def test_gradients_flow_and_a_step_is_taken_after_the_surgery(networks, name):
    dense, inputs = networks[name]
    smaller, _ = pruned(dense, halves(dense, seed=8))
    smaller.train()
    forward(dense, inputs)  # what neurons hold of another size does not disturb
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    before = {entry: value.detach().clone() for entry, value in smaller.named_parameters()}
    forward(smaller, inputs).square().mean().backward()
    optimizer.step()
    for entry, parameter in smaller.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), entry
    moved = [entry for entry, parameter in smaller.named_parameters() if not torch.equal(parameter, before[entry])]
    assert len(moved) > 0.8 * len(before), set(before) - set(moved)
    assert forward(smaller, inputs).isfinite().all()


def test_membranes_of_the_dense_widths_do_not_disturb():
    dense, inputs = network("vggsnn")
    smaller, _ = pruned(dense, halves(dense))
    with torch.no_grad():
        expected = forward(smaller, inputs)
        dense(inputs)  # and not reset
        Cut(dense, halves(dense)).apply(dense)
        assert torch.equal(dense(inputs), expected)
    functional.reset_net(dense)
    assert not any(isinstance(m.v, torch.Tensor) for m in dense.modules() if isinstance(m, LIFNode))


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "plain": lambda p: torch.optim.SGD(p, lr=1e-2),
}


def stepped(model: nn.Module, inputs: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        output = forward(model, inputs)
        (output * torch.linspace(-1, 1 + step, output.numel(), dtype=output.dtype).reshape(output.shape)).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["vggsnn", "spikformer"])
def test_moments_go_on_as_those_of_the_silenced_network(networks, name, kind):
    dense, inputs = copy.deepcopy(networks[name])
    optimizer = OPTIMIZERS[kind](dense.parameters())
    stepped(dense, inputs, optimizer)
    kept, names, state = halves(dense, seed=11), [entry for entry, _ in dense.named_parameters()], copy.deepcopy(optimizer.state_dict())
    shapes = {n: v["exp_avg"].shape for n, v in state["state"].items() if "exp_avg" in v}
    smaller, cut = pruned(dense, kept)
    fresh = OPTIMIZERS[kind](smaller.parameters())
    fresh.load_state_dict(cut.of_moments(state, names))
    assert shapes == {n: v["exp_avg"].shape for n, v in state["state"].items() if "exp_avg" in v}  # the dense one's is untouched
    if kind != "plain":
        for parameter in smaller.parameters():
            moments = [value for value in fresh.state[parameter].values() if value.dim()]
            assert moments and all(value.shape == parameter.shape for value in moments)
    with only(dense, name, kept, sizes_of(dense)):
        stepped(dense, inputs, optimizer, steps=2)
    stepped(smaller, inputs, fresh, steps=2)
    for entry, value in cut.of_entries(dense.state_dict()).items():
        torch.testing.assert_close(smaller.state_dict()[entry], value, rtol=0, atol=1e-9, msg=entry)


def test_moments_of_a_factored_optimizer_are_refused():
    model, inputs = network("vggsnn")
    optimizer = torch.optim.Adafactor(model.parameters())
    stepped(model, inputs, optimizer, steps=1)
    with pytest.raises(UserError, match="row_var.*features.0.conv.0.weight.*optimizer=adamw"):
        Cut(model, halves(model)).of_moments(optimizer.state_dict(), [name for name, _ in model.named_parameters()])


def test_moments_in_eight_bits_are_cut_with_the_weights():
    pytest.importorskip("bitsandbytes")
    from snnexp.engine.optimizers import AdamW8bit

    torch.manual_seed(0)
    model = VGGSNN(in_channels=2, num_classes=4, size=16, T=2, width=0.25)
    names, inputs = [name for name, _ in model.named_parameters()], torch.randn(2, 4, 2, 16, 16)
    eight, full = AdamW8bit(model.parameters(), lr=1e-3), torch.optim.AdamW(model.parameters(), lr=0.0)
    for _ in range(2):  # the same gradients
        full.zero_grad()
        forward(model, inputs).square().mean().backward()
        full.step()
        eight.step()
    full.zero_grad()
    kept = halves(model)
    cut = Cut(model, kept)
    moments, exact = cut.of_moments(eight.state_dict(), names), cut.of_moments(full.state_dict(), names)
    cut.apply(model)
    fresh, precise = AdamW8bit(model.parameters(), lr=1e-3), torch.optim.AdamW(model.parameters(), lr=1e-3)
    fresh.load_state_dict(moments)
    precise.load_state_dict(exact)
    for group in precise.param_groups:
        group["lr"] = 1e-3
    quantised = 0
    for name, parameter in model.named_parameters():
        state, reference = fresh.state[parameter], precise.state[parameter]
        assert state["state1"].shape == state["state2"].shape == parameter.shape, name
        for number, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
            values, expected = unpacked(state, number), reference[key]
            worst = expected.abs().max()
            assert (values - expected).abs().max() <= 0.03 * worst + 1e-12, (name, key)
        quantised += state["state1"].dtype == torch.uint8
    assert quantised > 3
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    forward(model, inputs).square().mean().backward()
    fresh.step()
    moved = {name: (parameter.detach() - before[name]) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    precise.step()
    for name, parameter in model.named_parameters():  # eight bits step as the full moments do, but for what they round off
        expected = parameter.detach() - before[name]
        if expected.numel() > 8:
            assert torch.corrcoef(torch.stack([moved[name].flatten(), expected.flatten()]))[0, 1] > 0.9, name


def unpacked(state: dict, number: int) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_blockwise

    values = state[f"state{number}"]
    if values.dtype != torch.uint8:
        return values
    return dequantize_blockwise(values, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=256)


def test_a_moving_average_is_cut_with_the_weights(networks):
    dense, inputs = copy.deepcopy(networks["resnet19"])
    average = MovingAverage(dense, 0.5)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    average.update()
    kept = halves(dense)
    smaller, cut = pruned(dense, kept)
    with torch.no_grad(), average.swap_into(dense), only(dense, "resnet19", kept, sizes_of(dense)):
        expected = forward(dense, inputs)
    smaller.load_state_dict(cut.of_entries(average.weights))
    with torch.no_grad():
        torch.testing.assert_close(forward(smaller, inputs), expected, rtol=0, atol=1e-5)


def test_one_image_and_one_graph_of_another_size(networks):
    smaller, _ = pruned(networks["spikformer"][0], halves(networks["spikformer"][0]))
    with torch.no_grad():
        assert forward(smaller, torch.randn(1, 3, 24, 8, dtype=torch.float64)).shape == (3, 1, 4)
        smaller, _ = pruned(networks["gat"][0], halves(networks["gat"][0]))
        torch.manual_seed(3)
        assert not math.isnan(forward(smaller, graphs()).sum())
