"""Spikformer: parameters, shapes, names, the attention in both orders and by hand, and every step against SpikingJelly's nodes."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from conftest import composed
from snnexp import check, parts
from snnexp.errors import UserError
from snnexp.models import spikformer
from snnexp.models.neurons import LIFNode
from snnexp.models.spikformer import MLP, SPS, SSA, Spikformer, SpikformerBlock, attention

EVENTS = {"in_channels": 2, "depth": 2, "dim": 256, "heads": 16, "pools": 4, "qkv_bias": False, "scale": 0.25}
"""What conf/model/spikformer_dvs.yaml sets."""


def made(**changes) -> Spikformer:
    return Spikformer(**{"in_channels": 3, "num_classes": 10, "size": 32, "T": 4} | changes)


def small(**changes) -> Spikformer:
    torch.manual_seed(0)
    return made(**{"size": 8, "T": 3, "depth": 2, "dim": 16, "heads": 4} | changes)


def lively(**changes) -> Spikformer:
    """A small model in evaluation mode whose running statistics are those of the noise it saw, so that all its layers fire."""
    model = small(**{"size": 2 * 2 ** changes.get("pools", 2), "scale": 1.0} | changes)  # 0.125 is for more tokens than four
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
            nn.init.normal_(module.bias, mean=0.8, std=0.2)  # untrained, a twentieth fires
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(3, 8, *shape_of(model)))
            functional.reset_net(model)
    return model.eval()


def shape_of(model: Spikformer) -> tuple[int, int, int]:
    side = 2 * 2**model.pools
    return model.in_channels, side, side


def spikes(*shape: int, rate: float = 0.4) -> torch.Tensor:
    return (torch.rand(*shape) < rate).float()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "parameters", "published", "unused"),
    [
        ({}, 9_324_730, 9_330_874, 4 * 2 * 2 * 384),
        ({"num_classes": 100}, 9_359_380, 9_365_524, 4 * 2 * 2 * 384),
        ({"dim": 256, "heads": 8}, 4_155_178, 4_159_274, 4 * 2 * 2 * 256),
        ({"depth": 2}, 5_765_050, 5_768_122, 2 * 2 * 2 * 384),
        # Two norms of each block and a last one, and the embedding of 64 positions.
        ({**EVENTS, "size": 128}, 2_566_666, 2_585_610, (2 * 2 + 1) * 2 * 256 + 64 * 256),
    ],
)
def test_parameter_count(changes, parameters, published, unused):
    assert count(made(**changes)) == parameters == published - unused


def test_parameters_that_a_hidden_channel_and_a_head_cost():
    assert count(MLP(384, 1536, LIFNode)) - count(MLP(384, 1535, LIFNode)) == 771
    assert count(SSA(384, 12, 0.125, True, lambda **changes: LIFNode())) == 12 * 49_440 + 384 + 768  # and bias and norm of proj


@pytest.mark.parametrize(("size", "pools", "grid"), [(32, 2, 8), (8, 2, 2), (12, 2, 3), (8, 1, 4), (128, 4, 8), (48, 4, 3), (16, 4, 1)])
def test_grid_of_the_patch_splitting(size, pools, grid):
    sps = SPS(2, 16, pools, LIFNode)
    sides = []
    for stage in (*sps.stages, sps.rpe):
        stage.register_forward_hook(lambda m, i, o: sides.append(tuple(o.shape[2:])))
    for node in sps.modules():
        if isinstance(node, LIFNode):
            node.step_mode = "m"
    tokens = sps(torch.randn(2, 3, 2, size, size))
    assert tokens.shape == (2, 3, grid * grid, 16)
    assert [side[0] for side in sides] == [2, 4, 8, 16, 16] and sides[-1][1] == grid
    assert [side[1] for side in sides[:4]] == [size // 2 ** max(0, i - (3 - pools)) for i in range(4)]
    assert set(tokens.unique().tolist()) <= {0.0, 1.0, 2.0}


def test_tokens_follow_the_grid_by_rows():
    sps = small().sps.eval()
    seen = {}
    sps.rpe.register_forward_hook(lambda m, i, o: seen.update(grid=i[0] + o))
    tokens = sps(3 * torch.randn(3, 2, 3, 12, 16))
    for row in range(3):
        for column in range(4):
            assert torch.equal(tokens[:, :, 4 * row + column], seen["grid"][..., row, column])


@pytest.mark.parametrize("changes", [{}, {"pools": 1}, {"in_channels": 1, "num_classes": 7}, {"qkv_bias": False, "mlp_ratio": 0.5}])
def test_output_shape(changes):
    model = small(**changes)
    assert model(torch.rand(5, 2, model.in_channels, 8, 16)).shape == (5, 2, model.head.out_features)


@pytest.mark.parametrize("size", [16, 48])
def test_events_of_any_size_that_divides(size):
    model = small(in_channels=2, size=size, pools=4)
    assert model(torch.rand(3, 2, 2, size, size)).shape == (3, 2, 10)


def test_still_image_is_repeated_and_left_alone():
    model = lively()
    x = torch.rand(2, 3, 8, 8)
    before = x.clone()
    out = model(x)
    functional.reset_net(model)
    assert out.shape == (3, 2, 10) and torch.equal(x, before)
    assert torch.equal(out, model(before.unsqueeze(0).repeat(3, 1, 1, 1, 1)))


def test_first_weights_of_the_linear_layers():
    for kind in ("small", "torch"):
        model = small(dim=128, linear_init=kind)
        for module in (m for m in model.modules() if isinstance(m, nn.Linear)):
            drawn = kind == "torch" and module is not model.head
            expected = (3 * module.in_features) ** -0.5 if drawn else 0.02
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1 if module is model.head else 0.03)
            assert module.bias is None or bool(module.bias.any()) == drawn


def test_names_of_the_layers():
    model = small()
    lifs = [name for name, module in model.named_modules() if isinstance(module, LIFNode)]
    assert lifs[:5] == [*(f"sps.stages.{i}.lif" for i in range(4)), "sps.rpe.lif"]
    assert lifs[5:12] == [
        *(f"blocks.0.attention.{name}" for name in ("q_lif", "k_lif", "v_lif", "lif", "proj_lif")), "blocks.0.mlp.lif1", "blocks.0.mlp.lif2"
    ]  # fmt: skip
    assert lifs[12:] == [name.replace("blocks.0", "blocks.1") for name in lifs[5:12]]
    assert [name for name, _ in model.named_children()] == ["sps", "blocks", "head"]
    assert not any("bias" in name for name, _ in small(qkv_bias=False).blocks[0].attention.q[0].named_parameters())


@pytest.mark.parametrize(
    ("settings", "threshold", "detached"),
    [({}, 1.0, True), ({"lif": {"v_threshold": 2, "detach_reset": "preset"}}, 2.0, False), ({"neuron": "tet"}, 1.0, True)],
)
def test_neurons_are_those_of_the_paper_unless_overridden(settings, threshold, detached):
    nodes = {name: module for name, module in small(**settings).named_modules() if isinstance(module, LIFNode)}
    for name, node in nodes.items():
        assert node.v_threshold == (0.5 if name.endswith("attention.lif") else threshold), name
        assert node.detach_reset is detached and node.tau == 2.0 and node.decay_input is ("neuron" not in settings)


@pytest.mark.parametrize(("L", "D"), [(1, 4), (4, 8), (8, 8), (9, 4), (64, 32)])
def test_attention_orders_agree_forward_and_backward(L, D):
    torch.manual_seed(0)
    factors = [spikes(2, 3, 4, L, D) for _ in range(3)]
    gradient = torch.randint(-4, 5, (2, 3, 4, L, D)).float()  # whole numbers too: every sum is exact
    results = []
    for by_tokens in (True, False, None):
        q, k, v = (factor.clone().requires_grad_() for factor in factors)
        out = attention(q, k, v, by_tokens)
        out.backward(gradient)
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert results[0][0].max() > 1 and all(part.abs().sum() > 0 for part in results[0])


@pytest.mark.parametrize(("L", "D", "cheaper"), [(4, 8, [(4, 4), (4, 8)]), (8, 4, [(4, 4), (8, 4)])])
def test_attention_takes_the_cheaper_order(L, D, cheaper, monkeypatch):
    products = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: products.append(matmul(a, b)) or products[-1])
    attention(spikes(L, D), spikes(L, D), spikes(L, D))
    assert [tuple(product.shape) for product in products] == cheaper


def test_attention_in_a_model_agrees_in_both_orders(monkeypatch):
    model, x = lively(), torch.randn(3, 2, 3, 8, 8)
    outputs = []
    for by_tokens in (True, False):
        monkeypatch.setattr(spikformer, "attention", lambda q, k, v, way=by_tokens: attention(q, k, v, way))
        outputs.append(model(x))
        functional.reset_net(model)
    assert torch.equal(*outputs)


def test_attention_by_hand():
    """Two tokens, two heads of two features; one step, tau 2: the LIF after the attention fires where scale q kᵀ v is 1 or more."""
    ssa = SSA(4, 2, 0.5, True, lambda **changes: LIFNode(step_mode="m", **changes)).eval()
    q = torch.tensor([[1.0, 1, 1, 0], [0, 0, 1, 1]])
    k = torch.tensor([[1.0, 1, 0, 1], [1, 0, 1, 1]])
    v = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 1]])
    # Head 0: q kᵀ = [[2, 1], [0, 0]], times v = [[1, 0], [0, 0]]: [[2, 0], [0, 0]].
    # Head 1: q kᵀ = [[0, 1], [1, 2]], times v = [[0, 1], [1, 1]]: [[1, 1], [2, 3]].
    for name, value in (("q_lif", q), ("k_lif", k), ("v_lif", v)):
        getattr(ssa, name).register_forward_hook(lambda m, i, o, value=value: value[None, None])
    seen = {}
    ssa.lif.register_forward_hook(lambda m, i, o: seen.update(charge=i[0], fired=o))
    ssa(torch.zeros(1, 1, 2, 4))
    assert seen["charge"][0, 0].tolist() == [[1.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.5]]
    assert seen["fired"][0, 0].tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]


def test_norms_of_tokens_are_over_steps_samples_and_tokens():
    mlp = MLP(8, 16, lambda: LIFNode(step_mode="m"))
    x = torch.randn(3, 2, 5, 8)
    mlp(x)
    mean = mlp.fc1[0](x).mean((0, 1, 2))
    torch.testing.assert_close(mlp.fc1[1].running_mean, 0.1 * mean)


def test_residuals_add_spikes():
    block = SpikformerBlock(8, 2, 16, 0.125, True, lambda **changes: LIFNode(step_mode="m", **changes))
    parts = []
    for part in (block.attention, block.mlp):
        part.register_forward_hook(lambda m, i, o: parts.append((i[0], o)))
    x = spikes(3, 2, 5, 8)
    out = block(x)
    (first, added), (second, added_then) = parts
    assert torch.equal(first, x) and torch.equal(second, x + added) and torch.equal(out, second + added_then)


def step_by_step(model: Spikformer, x: torch.Tensor) -> torch.Tensor:
    """The model's weights in a loop over T with SpikingJelly's single-step nodes, and the attention written out over heads."""
    nodes = {}
    for name, module in model.named_modules():
        if isinstance(module, LIFNode):
            nodes[module] = neuron.LIFNode(
                tau=2.0, v_threshold=0.5 if name.endswith("attention.lif") else 1.0, detach_reset=True, step_mode="s"
            )

    def stage(part, image, halves):
        image = nodes[part.lif](part.conv[1](part.conv[0](image)))
        return nn.functional.max_pool2d(image, 3, 2, 1) if halves else image

    def dense(part, lif, tokens):
        each = part[0](tokens)  # [N, L, C]
        return nodes[lif](part[1](each.transpose(1, 2)).transpose(1, 2))

    outputs = []
    for image in x:
        for i, part in enumerate(model.sps.stages):
            image = stage(part, image, i >= 2)
        image = image + stage(model.sps.rpe, image, False)
        tokens = image.flatten(2).transpose(1, 2)
        for block in model.blocks:
            a = block.attention
            q, k, v = (dense(getattr(a, n), getattr(a, f"{n}_lif"), tokens) for n in "qkv")
            heads = []
            for qh, kh, vh in zip(*(each.chunk(a.heads, -1) for each in (q, k, v)), strict=True):
                heads.append(torch.einsum("nld,nmd,nme->nle", qh, kh, vh) * a.scale)
            tokens = tokens + dense(a.proj, a.proj_lif, nodes[a.lif](torch.cat(heads, -1)))
            tokens = tokens + dense(block.mlp.fc2, block.mlp.lif2, dense(block.mlp.fc1, block.mlp.lif1, tokens))
        outputs.append(model.head(tokens.mean(1)))
    return torch.stack(outputs)


def test_equals_a_loop_over_steps_of_spikingjellys_nodes():
    model = lively().double()  # in double no sum comes near enough to a threshold to depend on its order
    rates = {}
    for name, module in model.named_modules():
        if isinstance(module, LIFNode):
            module.register_forward_hook(lambda m, i, o, name=name: rates.update({name: o.mean().item()}))
    x = torch.randn(3, 8, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        out = model(x)
        assert min(rates.values()) > 0.05, rates
        torch.testing.assert_close(out, step_by_step(model, x), rtol=1e-9, atol=1e-12)
    assert not torch.equal(out[0], out[2])


@pytest.mark.parametrize("pools", [2, 4])
def test_gradient_reaches_every_parameter(pools):
    model = lively(pools=pools, depth=1)  # in training mode a bias before a norm has none
    model(torch.randn(3, 8, *shape_of(model))).square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_a_reset_model_has_no_memory():
    model, x = lively(), torch.randn(3, 2, 3, 8, 8)
    first = model(x)
    assert not torch.equal(model(x), first)  # the membranes of the last step are there
    functional.reset_net(model)
    assert all(module.v == 0.0 for module in model.modules() if isinstance(module, LIFNode))
    assert torch.equal(model(x), first)


def test_widths_are_those_of_the_weights():
    """With a head, hidden units of an MLP and channels of the first stage cut away by hand, it runs as it is."""
    model = lively()
    block = model.blocks[0]
    for name in "qkv":
        part = getattr(block.attention, name)
        part[0].weight = nn.Parameter(part[0].weight[4:])
        part[0].bias = nn.Parameter(part[0].bias[4:])
        part[1] = nn.BatchNorm1d(12)
    block.attention.proj[0].weight = nn.Parameter(block.attention.proj[0].weight[:, 4:])
    block.attention.heads = 3
    block.mlp.fc1[0], block.mlp.fc1[1], block.mlp.fc2[0] = nn.Linear(16, 50), nn.BatchNorm1d(50), nn.Linear(50, 16)
    first, second = model.sps.stages[:2]
    first.conv[0], first.conv[1] = nn.Conv2d(3, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1)
    second.conv[0] = nn.Conv2d(1, 4, 3, padding=1, bias=False)
    assert model(torch.randn(3, 2, 3, 8, 8)).shape == (3, 2, 10)


def test_bf16_channels_last_step_makes_no_copy_of_the_tokens():
    model = small().to(memory_format=torch.channels_last)
    seen = []
    model.sps.rpe.register_forward_hook(lambda m, i, o: seen.append(o.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)))
    model.sps.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous()))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.rand(3, 2, 3, 8, 8))
    out.float().sum().backward()
    assert seen == [True, True]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, ["model.size: 30", "multiple of 4", "28 or 32", "dataset.size", "model.pools"]),
        ({"size": 24, "pools": 4}, ["model.size: 24", "multiple of 16", "16 or 32"]),
        ({"size": 3}, ["model.size: 3", "size 4 "]),
        ({"size": 0}, ["model.size: 0", "size 4 "]),
        ({"dim": 20}, ["model.dim: 20", "multiple of 8"]),
        ({"dim": 0}, ["model.dim: 0"]),
        ({"heads": 5}, ["model.heads: 5", "model.dim=16", "is 4"]),
        ({"heads": 0}, ["model.heads: 0", "is 1"]),
        ({"depth": 0}, ["model.depth: 0", "at least 1"]),
        ({"mlp_ratio": 0}, ["model.mlp_ratio: 0"]),
        ({"pools": 5}, ["model.pools: 5", "0 to 4"]),
        ({"scale": 0}, ["model.scale: 0"]),
        ({"linear_init": "big"}, ["model.linear_init: 'big'", "small, torch"]),
        ({"neuron": "lif"}, ["model.neuron", "'lif'"]),
        ({"lif": {"tua": 2}}, ["'tua'", "'tau'"]),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as error:
        small(**changes)
    assert all(part in str(error.value) for part in message), str(error.value)


@pytest.mark.parametrize("shape", [(3, 2, 2, 8, 8), (3, 2, 3, 8, 10), (3, 2, 3, 6, 8), (3, 8, 8)])
def test_input_of_another_shape(shape):
    with pytest.raises(UserError, match=r"\[T, N, 3, H, W\] with H and W multiples of 4"):
        small()(torch.rand(shape))


@pytest.mark.parametrize(
    ("words", "live"),
    [
        (["model=spikformer", "dataset=digits"], 9_324_730 - 2 * 48 * 9),
        (["model=spikformer_dvs", "dataset=digits_dvs", "dataset.size=16"], 2_566_666),
    ],
)
def test_the_files_of_conf_build_the_models_of_the_paper(words, live, data_dir):
    whole = composed(*words, f"data_dir={data_dir}", "T=2")
    check.check(whole)
    data, task = parts.make_data(whole), parts.make_task(whole)
    with torch.device("meta"):
        assert count(parts.make_model(whole, data, task)) == live
    assert whole["model"]["lif"]["detach_reset"] is True


def test_the_default_camera_is_refused_with_the_size_to_take(data_dir):
    with pytest.raises(UserError, match=r"model.size: 24 is no multiple of 16, .* take data of size 16 or 32 \(dataset.size\)"):
        check.check(composed("model=spikformer_dvs", "dataset=digits_dvs", f"data_dir={data_dir}", "T=2"))
