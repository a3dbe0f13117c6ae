"""Spike maps: the spikes of one sample, where they were."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.nets import graphs, network, recorded
from snnexp.models.neurons import LIFNode
from snnexp.models.resnet19 import ResNet19
from snnexp.pruning.spike_maps import spike_maps


def maps(model: nn.Module, inputs: object) -> dict[str, np.ndarray]:
    return spike_maps(model, model.channel_groups(), lambda: model(inputs))


def test_images_lie_as_they_are():
    model, inputs = network("vggsnn")
    out, result = recorded(model, inputs), maps(model, inputs)
    assert list(result) == [group.name for group in model.channel_groups()]
    for name, values in result.items():
        assert np.array_equal(values, out[name][:, 0].sum(0).numpy()), name  # the first sample's, of the three steps
    assert result["features.0.lif"].shape == (8, 32, 32) and result["features.10.lif"].shape == (64, 4, 4)


def test_tokens_lie_in_their_square_and_heads_are_the_mean_of_their_channels():
    model, inputs = network("spikformer")
    out, result = recorded(model, inputs), maps(model, inputs)
    tokens = out["blocks.1.mlp.lif1"][:, 0].sum(0)  # [16, 128]
    assert result["blocks.1.mlp.lif1"].shape == (128, 4, 4)
    assert np.array_equal(result["blocks.1.mlp.lif1"], tokens.T.reshape(128, 4, 4).numpy())
    of_qkv = [out[f"blocks.0.attention.{name}_lif"][:, 0].sum(0).reshape(16, 4, 8).mean(2).T.reshape(4, 4, 4) for name in "qkv"]
    np.testing.assert_allclose(result["blocks.0.attention"], torch.stack(of_qkv).mean(0).numpy(), atol=2e-3)
    # The embedding: the mean of all that write to the sum but the last stage, whose spikes are pooled after the neuron.
    written = [out["sps.rpe.lif"][:, 0].sum(0)]
    for i in range(2):
        written += [out[f"blocks.{i}.{name}"][:, 0].sum(0).T.reshape(32, 4, 4) for name in ("attention.proj_lif", "mlp.lif2")]
    assert out["sps.stages.3.lif"].shape[-2:] == (8, 8) and result["embedding"].shape == (32, 4, 4)
    np.testing.assert_allclose(result["embedding"], torch.stack(written).mean(0).numpy(), atol=2e-3)


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_nodes_lie_in_a_row(name):
    model, _ = network(name)
    inputs = graphs()
    while inputs.num_nodes != 16:  # 13 of them and three more: 4 x 4 is no picture of a graph
        inputs.x = torch.cat([inputs.x, torch.randn(16 - inputs.num_nodes, 4)])
        inputs.ptr[-1] = 16
        inputs.batch = torch.cat([inputs.batch, inputs.batch.new_full((16 - len(inputs.batch),), 2)])
    result, out = maps(model, inputs), recorded(model, inputs)
    units = out["gnn_model.lif1"].sum(0).T  # [width, V]
    expected = units if name == "gcn" else units.reshape(3, 12, 16).mean(1)
    assert result["gnn_model.lif1"].shape == (len(expected), 1, 16)
    np.testing.assert_allclose(result["gnn_model.lif1"][:, 0], expected.numpy(), atol=2e-3)
    assert name == "gat" or len(result["output_mlp.0"]) == 12


def test_a_flat_layer_is_a_row_too():
    torch.manual_seed(0)
    model, inputs = ResNet19(in_channels=3, num_classes=4, size=8, T=3, width=0.125).eval(), torch.randn(3, 4, 3, 8, 8) * 3
    nn.init.uniform_(model.fc1[0].bias, 0.0, 1.5)
    out, result = recorded(model, inputs), maps(model, inputs)
    assert result["fc1_lif"].shape[:2] == (32, 1)  # of samples, four of which are no square
    assert np.array_equal(result["fc1_lif"][:, 0, 0], out["fc1_lif"][:, 0].sum(0).numpy()) and result["fc1_lif"].max() > 0


def test_nothing_is_left_behind():
    model, inputs = network("vggsnn")
    model.train()
    model.features[0].conv[1].eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    maps(model, inputs)
    with pytest.raises(ZeroDivisionError):
        spike_maps(model, model.channel_groups(), lambda: 1 // 0)
    assert not any(module._forward_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module.v, Tensor) for module in model.modules() if isinstance(module, LIFNode))
