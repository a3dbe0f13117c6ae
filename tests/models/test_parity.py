"""Our models in float64 with published models' weights give what their authors' own code gave."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from parity import Upstream, firing, trained
from snnexp.data.stays.medical import Stays
from snnexp.models.resnet19 import ResNet19
from snnexp.models.seqset_vae.set_vae import SetVAE, mean_of_sets
from snnexp.models.spikformer import Spikformer
from snnexp.models.spiking_gnn import SpikingGNN
from snnexp.models.svrt.spikes import SpikeFusion
from snnexp.models.svrt.vrt import VRT
from snnexp.models.vggsnn import VGGSNN
from snnexp.tasks.classification import Classification
from snnexp.tasks.deblurring import LOSSES
from snnexp.tasks.graph import GraphRegression

ROUNDING = 1e-11
"""Of sums of thousands of float64 numbers up to 100."""


def compare_classifier(name: str, model: nn.Module, by_time: bool, pairs: bool = False) -> None:
    """Evaluation, then a step of training. `by_time`: outputs [N, T, C] and the TET loss; otherwise their mean over time, smoothed."""
    upstream = Upstream(name)
    upstream.fill(model)
    batch = upstream.inputs["x"], upstream.number("y")
    task = Classification(loss="tet", lamb=0.001) if by_time else Classification(loss="ce", label_smoothing=0.1)

    def run() -> tuple[Tensor, Tensor]:
        loss, output = task.loss(model, batch, 0)
        return loss, output.transpose(0, 1) if by_time else output.mean(0)

    def shared(rates: Tensor) -> Tensor:
        """Theirs has one neuron for stem and hidden layer, and one for the two of each block."""
        return torch.stack([(rates[0] + rates[-1]) / 2, *rates[1:-1].view(-1, 2).mean(1)]) if pairs else rates

    with torch.no_grad(), firing(model) as rates:
        found = {"eval_out": run()[1], "eval_rate": shared(rates())}
    found |= trained(upstream, model, run)
    found["train_rate"] = shared(found["train_rate"])
    assert max(upstream.differences(found).values()) < ROUNDING, upstream.differences(found)
    assert upstream.largest_gradient_difference(model) < ROUNDING
    assert found["train_rate"].min() > 0.01  # or there were nothing to compare


@pytest.mark.parametrize("name", ["vggsnn", "vggsnn_woap"])
def test_vggsnn(name):
    compare_classifier(name, VGGSNN(**Upstream(name).arguments), by_time=True)


def test_resnet19():
    # Pairs are not of equal size where a block halves the image; both of a pair come after that.
    compare_classifier("resnet19", ResNet19(**Upstream("resnet19").arguments), by_time=True, pairs=True)


@pytest.mark.parametrize("name", ["spikformer_cifar", "spikformer_dvs"])
def test_spikformer(name):
    compare_classifier(name, Spikformer(**Upstream(name).arguments), by_time=False)


@pytest.mark.parametrize("depth", ["std", "full"])
@pytest.mark.parametrize("conv", ["gcn", "gin", "sage", "gat", "gatv2", "graphconv"])
def test_spiking_gnn(conv, depth):
    upstream = Upstream(f"sgt_{conv}_{depth}")
    model = upstream.fill(SpikingGNN(**upstream.arguments))
    x, edges, graph = (upstream.inputs[key] for key in ("x", "edge_index", "batch"))
    graph = graph.long()
    starts = torch.searchsorted(graph, torch.arange(int(graph[-1]) + 1))
    graphs = []
    for g in range(len(starts)):
        own = (graph[edges[0].long()] == g).nonzero()[:, 0]
        graphs.append(Data(x=x[graph == g], edge_index=edges[:, own].long() - starts[g]))
    with firing(model, of_steps=True) as rates:
        batch = Batch.from_data_list(graphs), upstream.number("y")[:, None], (torch.zeros(1), torch.ones(1))
        loss, output = GraphRegression(loss="mse").loss(model, batch, 0)
    loss.backward()
    found = upstream.differences({"eval_out": output[:, 0], "eval_loss": loss, "eval_rate": rates()})
    assert max(found.values()) < ROUNDING, found
    assert upstream.largest_gradient_difference(model) < ROUNDING


def test_svrt_parts():
    upstream = Upstream("svrt_parts")
    model = upstream.fill(SpikeFusion(**upstream.arguments))
    frames = [upstream.inputs[f"frames_{i}"].movedim(2, -1) for i in range(4)]
    with torch.no_grad():
        encoded = model.encoder(upstream.inputs["spikes"])
        attended = model(upstream.inputs["spikes"])
        found = {f"encoded_{i}": encoded[i] for i in range(4)} | {f"attended_{i}": attended[i] for i in range(4)}
        for i, (attend, cross, x) in enumerate(zip(model.attention, model.cross_attention, frames, strict=True)):
            found[f"fused_{i}"] = cross(x, attended[i])
            found[f"attended_frames_{i}"] = attend(x)
            found[f"fused_frames_{i}"] = cross(x, x.flip(1))
    found = upstream.differences({key: value.movedim(-1, 2) for key, value in found.items()})
    assert max(found.values()) < ROUNDING, found


def test_the_encoder_of_earlier_runs_is_another():
    upstream = Upstream("svrt_parts")
    model = upstream.fill(SpikeFusion(**upstream.arguments, encoder_relu=False))
    with torch.no_grad():
        x = F.conv3d(upstream.inputs["spikes"].transpose(1, 2), model.encoder.stem.weight, model.encoder.stem.bias, padding=1)
        for block in model.encoder.blocks[0]:
            x = x + block.conv2(F.leaky_relu(block.conv1(x), 0.1))
        encoded = model.encoder(upstream.inputs["spikes"])[0]
    assert torch.allclose(encoded, x.permute(0, 2, 3, 4, 1), rtol=0, atol=1e-12)
    assert upstream.differences({"encoded_0": encoded.movedim(-1, 2)})["encoded_0"] > 1


RESTORED = 1e-6
"""Residuals of videos are kept in float32."""


def residual(upstream: Upstream, model: nn.Module, *more: Tensor) -> dict[str, float]:
    x = upstream.inputs["x"]
    with torch.no_grad():
        rest = model(x, *more) - x
    sums = torch.stack([rest.sum(), rest.square().sum()])
    found = upstream.differences({"eval_residual": rest, "eval_sums": sums})
    return found | {"eval_sums": found["eval_sums"] / rest.numel()}


def test_optical_flow():
    upstream = Upstream("vrt")
    model = upstream.fill(VRT(**upstream.arguments))
    with torch.no_grad():
        flow = model.flows(upstream.inputs["x"][:, :2])[0][0][:, 0]
    assert upstream.differences({"flow": flow[..., ::4, ::4]})["flow"] < RESTORED * flow.abs().max()


@pytest.mark.slow
def test_vrt():
    upstream = Upstream("vrt")
    model = upstream.fill(VRT(**upstream.arguments))
    found = residual(upstream, model)
    assert max(found.values()) < RESTORED, found
    first = upstream.inputs["x"][:, :2]
    loss = LOSSES["charbonnier_eps"](model(first) - first.roll(3, -1)).mean()
    loss.backward()
    assert upstream.differences({"eval_loss": loss})["eval_loss"] < 1e-8
    assert upstream.largest_gradient_difference(model) < RESTORED


@pytest.mark.slow
def test_svrt():
    upstream = Upstream("svrt")
    model = upstream.fill(VRT(**upstream.arguments))
    found = residual(upstream, model, upstream.inputs["spikes"])
    assert max(found.values()) < RESTORED, found


class Events(SetVAE):
    """A SetVAE that is given the vectors of events."""

    def events(self, stays: Stays) -> Tensor:
        return self.given


def sets_of(events: Tensor) -> Stays:
    """Sets of one size [M, n, W] as the one set of each of M stays."""
    count, n = events.shape[:2]
    one, zero = torch.ones(count, dtype=torch.long), torch.zeros(count)
    return Stays(torch.arange(count * n), torch.zeros(count * n), zero, torch.arange(count), zero.long(), one, [(n, count)], 1)


@pytest.mark.parametrize("j", [0, 1])
def test_set_vae(j):
    upstream = Upstream("setvae")
    events = upstream.number(f"events_{j}")
    stays = sets_of(events)
    published = {"residual": False, "decoder": "tanh", "embeddings": torch.zeros(9, 40)}
    model = upstream.fill(Events(**upstream.arguments, **published))
    model.given, model.decoder.points = events.flatten(0, 1), upstream.inputs[f"points_{j}"]
    mu, logvar, _ = model.encode(stays)
    x = model.enter(model.given)
    for layer in model.encoder:
        x = layer(x, stays)
    found = {
        f"mu_{j}": mu,
        f"logvar_{j}": logvar,
        f"encoded_{j}": x.view(events.shape),
        f"exchanged_{j}": model.decoder.exchange[-1].exchange(mu[-1][:, None], stays),
        f"recon_{j}": model(stays).decoded[0].view(events.shape),
    }
    if j == 0:
        found["eval_loss"] = mu.square().sum() + logvar.sin().sum()
        found["eval_loss"].backward()
        assert upstream.largest_gradient_difference(model) < ROUNDING
    assert max(upstream.differences(found).values()) < ROUNDING, upstream.differences(found)
    assert torch.equal(mean_of_sets(x, stays), x.view(events.shape).mean(1))


def test_set_vae_with_events_as_published():
    """Vectors of events are theirs but for the 1e-8 that they add to a length."""
    upstream = Upstream("setvae")
    table = upstream.inputs["var_0"].flatten(0, 1)
    model = SetVAE(**upstream.arguments | {"num_variables": len(table)}, residual=False, events="scaled", embeddings=table)
    upstream.fill(model)
    stays = sets_of(upstream.inputs["var_0"])
    stays.value = upstream.inputs["val_0"].flatten()
    with torch.no_grad():
        events, (mu, logvar, _) = model.events(stays), model.encode(stays)
    found = upstream.differences({"events_0": events.view(upstream.data["events_0"].shape), "mu_0": mu, "logvar_0": logvar})
    assert max(found.values()) < 1e-8, found
