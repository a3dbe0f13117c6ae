"""Scores against sums by hand, of spikes that are known; and nothing left behind of having looked."""

import math

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from pruning.nets import network, recorded
from snnexp.errors import UserError
from snnexp.models.channels import ChannelGroup, Place, channel_group
from snnexp.models.neurons import LIFNode, make_lif
from snnexp.pruning.pruner import Pruner, SpikeMapPruner
from snnexp.pruning.scores import RandomChoice, SpikeEntropy, SpikeMap, WeightMagnitude
from snnexp.pruning.surgery import groups_of


class Telegraph(nn.Module):
    """A LIF whose spikes are its input, if that is of 0 and 1: a current of 1 fires at once and leaves nothing behind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = layer.SeqToANNContainer(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, eps=0.0))
        self.lif = make_lif("tet")
        self.dropout = nn.Dropout(0.5)
        self.read = layer.SeqToANNContainer(nn.Conv2d(channels, 1, 1))
        nn.init.dirac_(self.conv[0].weight)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif(self.conv(x))
        assert torch.equal(spikes, x) or self.training
        output = self.read(self.dropout(spikes))
        self.seen.append(output)
        return output

    def channel_groups(self) -> list[ChannelGroup]:
        return [channel_group(self, "lif", carriers=[Place("lif", 2)], made_by=["conv"], read_by=["read"])]


class Pairs(Telegraph):
    """The same, of which two channels make a unit, and two groups share the neuron."""

    def channel_groups(self) -> list[ChannelGroup]:
        made, read = (Place("conv.0.weight", 0, 2),), (Place("read.0.weight", 1, 2),)
        return [
            ChannelGroup("first", 2, (Place("lif", 2, 2),), made, read),
            ChannelGroup("second", 1, (Place("lif", 2, 2, offset=4),), made, read),
        ]


def spikes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rates = torch.rand(shape[0], 1, shape[2], 1, 1, generator=generator)  # of each step and channel
    return (torch.rand(shape, generator=generator) < rates).float()


def scores(model: nn.Module, criterion: object, batches: list) -> dict[str, Tensor]:
    return Pruner(model, criterion).compute_channel_scores(batches)


def entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_mean_spike_rate_over_steps_samples_and_space():
    model, batches = Telegraph(3), [spikes(4, 5, 3, 2, 7), spikes(4, 2, 3, 2, 7, seed=1)]
    result = scores(model, SpikeMap(), batches)["lif"]
    fired = [sum(batch[:, :, c].sum().item() for batch in batches) for c in range(3)]
    assert result.dtype == torch.float64 and result.device.type == "cpu"
    assert result.tolist() == pytest.approx([total / (4 * 7 * 2 * 7) for total in fired], abs=1e-12)  # the smaller batch weighs less


def test_known_spikes():
    x = torch.zeros(2, 1, 4, 1, 2)
    x[:, :, 0] = 1  # always
    x[0, :, 1] = 1  # at the first step, everywhere
    x[:, :, 2, :, 0] = 1  # at one of two places
    result = scores(Telegraph(4), SpikeMap(), [x])["lif"]
    assert result.tolist() == [1.0, 0.5, 0.5, 0.0]
    # Both fire in half of all cases; at each step, the first is certain and the second is not.
    assert scores(Telegraph(4), SpikeEntropy(), [x])["lif"].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-12)


def test_entropy_by_its_formula():
    batches = [spikes(4, 5, 3, 2, 7), spikes(4, 2, 3, 2, 7, seed=1)]
    result = scores(Telegraph(3), SpikeEntropy(), batches)["lif"]
    every = torch.cat(batches, 1).double().mean((1, 3, 4))  # [T, C]
    expected = [sum(entropy(every[t, c].item()) for t in range(4)) / 4 for c in range(3)]
    assert result.tolist() == pytest.approx(expected, abs=1e-12) and result.isfinite().all()


@pytest.mark.parametrize("criterion", [SpikeMap, SpikeEntropy])
def test_units_of_several_channels_at_an_offset(criterion):
    x = spikes(4, 5, 6, 2, 7)
    single = scores(Telegraph(6), criterion(), [x])["lif"].tolist()
    result = scores(Pairs(6), criterion(), [x])
    assert result["first"].tolist() == pytest.approx([(single[0] + single[1]) / 2, (single[2] + single[3]) / 2], abs=1e-12)
    assert result["second"].tolist() == pytest.approx([(single[4] + single[5]) / 2], abs=1e-12)


def test_rates_of_heads_of_residual_sums_and_of_a_hidden_layer():
    model, inputs = network("spikformer")
    out = recorded(model, inputs)
    result = scores(model, SpikeMap(), [inputs])
    hidden = out["blocks.1.mlp.lif1"].mean((0, 1, 2))  # of the hidden channels, not of what the MLP puts out
    assert len(hidden) == 128 and torch.allclose(result["blocks.1.mlp.lif1"], hidden, atol=1e-12)
    heads = sum(out[f"blocks.0.attention.{x}_lif"].mean((0, 1, 2)).reshape(4, 8).mean(1) for x in "qkv") / 3
    assert torch.allclose(result["blocks.0.attention"], heads, atol=1e-12)
    images = [out[name].mean((0, 1, 3, 4)) for name in ("sps.stages.3.lif", "sps.rpe.lif")]
    tokens = [out[f"blocks.{i}.{name}"].mean((0, 1, 2)) for i in (0, 1) for name in ("attention.proj_lif", "mlp.lif2")]
    assert torch.allclose(result["embedding"], torch.stack(images + tokens).mean(0), atol=1e-12)
    assert all(values.min() >= 0 and values.max() <= 1 and values.std() > 0 for values in result.values())


def test_rates_of_a_readout_of_sum_mean_and_max_and_of_graph_attention():
    model, inputs = network("gcn")
    out = recorded(model, inputs)
    result = scores(model, SpikeMap(), [inputs])
    assert torch.allclose(result["gnn_model.lif1"], out["gnn_model.lif1"].mean((0, 1)), atol=1e-12)
    assert torch.allclose(result["output_mlp.0"], out["output_mlp.0"].mean((0, 1)).reshape(3, 12).mean(0), atol=1e-12)
    model, inputs = network("gat")
    out = recorded(model, inputs)
    assert torch.allclose(
        scores(model, SpikeMap(), [inputs])["gnn_model.lif2"], out["gnn_model.lif2"].mean((0, 1)).reshape(3, 12).mean(1), atol=1e-12
    )


def test_magnitude_of_the_weights_that_make_a_unit():
    model, inputs = network("resnet19")
    result = scores(model, WeightMagnitude(), [inputs])
    assert torch.allclose(result["blocks.4.lif1"], model.blocks[4].conv1[0].weight.abs().mean((1, 2, 3)), atol=1e-12)
    writers = [model.blocks[i].conv2[0].weight for i in (0, 1, 2)] + [model.blocks[0].shortcut[0].weight]
    expected = [sum(w[c].abs().sum().item() for w in writers) / sum(w[c].numel() for w in writers) for c in range(16)]
    assert result["blocks.0.lif2"].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(result["fc1_lif"], model.fc1[0].weight.abs().mean(1), atol=1e-12)
    model, inputs = network("spikformer")
    qkv = torch.cat([getattr(model.blocks[1].attention, x)[0].weight.reshape(4, -1) for x in "qkv"], 1)
    assert torch.allclose(scores(model, WeightMagnitude(), [inputs])["blocks.1.attention"], qkv.abs().mean(1), atol=1e-12)


def test_magnitude_needs_no_spikes():
    model, inputs = network("ann")
    result = scores(model, WeightMagnitude(), [inputs])
    expected = model.gnn_model.conv2.lin.weight.double().abs().mean(1)
    assert torch.allclose(result["gnn_model.lif2"], expected, atol=1e-12)


def test_random_choice_is_that_of_its_seed_and_of_no_other_generator():
    model, inputs = network("vggsnn")
    first = scores(model, RandomChoice(3), [inputs])
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again, other = scores(model, RandomChoice(3), [inputs]), scores(model, RandomChoice(4), [inputs])
    assert torch.equal(torch.get_rng_state(), state)
    for group in groups_of(model):
        assert torch.equal(first[group.name], again[group.name]) and not torch.equal(first[group.name], other[group.name])
        assert first[group.name].shape == (group.size,)
    assert not torch.equal(first["features.3.lif"][:8], first["features.4.lif"][:8])  # layers differ


@pytest.mark.parametrize("name", ["vggsnn", "gatv2"])
def test_every_group_has_a_score_for_every_unit(name):
    model, inputs = network(name)
    for criterion in (SpikeMap(), SpikeEntropy(), WeightMagnitude(), RandomChoice()):
        result = scores(model, criterion, [inputs])
        assert {group.name: (group.size,) for group in groups_of(model)} == {key: tuple(values.shape) for key, values in result.items()}
        assert all(values.dtype == torch.float64 and values.isfinite().all() for values in result.values())
        assert isinstance(criterion.title, str)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("criterion", [SpikeMap, SpikeEntropy, WeightMagnitude, RandomChoice])
def test_nothing_is_left_behind(criterion):
    model, inputs = network("resnet19")
    model.train()
    model.stem[1].eval()  # frozen
    model(inputs)  # neurons are not at rest
    torch.manual_seed(5)
    rng, state = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    result = scores(model, criterion(), [inputs, inputs])
    assert hooks(model) == 0
    assert all(
        not isinstance(m.v, Tensor) and not m.count_spikes and m.spike_counts is None for m in model.modules() if isinstance(m, LIFNode)
    )
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(values.requires_grad for values in result.values())
    model.eval()
    again = scores(model, criterion(), [inputs])  # rest before, evaluation mode within: the same
    assert all(torch.allclose(result[group], again[group], atol=1e-12) for group in result)
    assert not any(module.training for module in model.modules())


def test_no_graph_is_kept():
    model = Telegraph(3)
    scores(model, SpikeMap(), [spikes(4, 5, 3, 2, 7)])
    assert len(model.seen) == 1 and not model.seen[0].requires_grad


def test_after_an_error_in_the_forward_pass_too():
    model, inputs = network("vggsnn")
    model.train()
    with pytest.raises(UserError, match="VGGSNN was made for"):
        scores(model, SpikeMap(), [inputs, inputs[..., :-1]])
    assert hooks(model) == 0 and model.training
    assert all(not isinstance(m.v, Tensor) for m in model.modules() if isinstance(m, LIFNode))

    def batches():
        yield inputs
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        SpikeMapPruner(model).compute_channel_scores(batches())
    assert hooks(model) == 0 and model.training


def test_each_batch_begins_at_rest():
    model = Telegraph(2)
    x = torch.full((2, 1, 2, 1, 1), 0.6)  # 0.6, 0.9: it would fire at the third step

    def forward(batch: Tensor) -> Tensor:
        return model.lif(batch)

    x[:, :, 1] = 1
    result = Pruner(model, SpikeMap()).compute_channel_scores([x, x, x], forward)["lif"]
    assert result.tolist() == [0.0, 1.0]


def test_a_pruner_can_be_asked_again():
    model, pruner = Telegraph(3), SpikeMapPruner
    pruner = pruner(model)
    first, second = [spikes(4, 5, 3, 2, 7)], [spikes(4, 5, 3, 2, 7, seed=1)]
    one, two = pruner.compute_channel_scores(first), pruner.compute_channel_scores(second)
    assert torch.equal(two["lif"], SpikeMapPruner(model).compute_channel_scores(second)["lif"])  # nothing of the first is in it
    assert torch.equal(one["lif"], pruner.compute_channel_scores(first)["lif"]) and not torch.equal(one["lif"], two["lif"])


def test_no_calibration_samples():
    with pytest.raises(UserError, match="no calibration samples"):
        SpikeMapPruner(Telegraph(3)).compute_channel_scores([])


def test_a_network_that_never_spikes():
    for criterion in (SpikeMap(), SpikeEntropy()):
        with pytest.raises(UserError, match="is 0 everywhere.*not trained"):
            scores(Telegraph(3), criterion, [torch.zeros(2, 1, 3, 1, 1)])
    assert scores(Telegraph(3), WeightMagnitude(), [torch.zeros(2, 1, 3, 1, 1)])["lif"].tolist() == pytest.approx([1 / 3] * 3)


def test_a_network_without_spiking_neurons():
    model, inputs = network("ann")
    with pytest.raises(UserError, match="gnn_model.lif1.*no spiking neuron.*weight_magnitude.*pruner.ignore=\\[gnn_model.lif1\\]"):
        scores(model, SpikeMap(), [inputs])
    assert hooks(model) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu_the_same():
    model, inputs = network("spikformer")
    expected = scores(model, SpikeMap(), [inputs])
    result = scores(model.cuda(), SpikeMap(), [inputs.cuda()])
    assert all(torch.allclose(result[group], expected[group], atol=1e-9) for group in expected)
