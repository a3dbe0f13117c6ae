"""VRT and S-VRT: their parameters, their windows against a plain form, what follows a flow, any size, and memory saved without a trace."""

import math

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.errors import UserError
from snnexp.models.neurons import LIFNode
from snnexp.models.svrt import attention_batches
from snnexp.models.svrt.flow import GuidedSampling, SpyNet, four_nearest, resize_flow, warp
from snnexp.models.svrt.spikes import SpikeEncoder3D
from snnexp.models.svrt.vrt import VRT, Double, Halve, aligned_neighbours
from snnexp.models.svrt.window_attention import AttentionLayer, WindowAttention, attend, relative_place_index, sine_positions

DESCRIBED = {"last_width": 96, "groups": 6, "window": [5, 8, 8]}
TINY = {
    "width": 8, "last_width": 8, "depth": 2, "last_depth": 2, "groups": 1, "still_groups": 0, "heads": 2, "mutual": 0.5,
    "window": [3, 4, 4], "deform_groups": 2, "flow_width": 4,
}  # fmt: skip


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def published() -> VRT:
    with torch.device("meta"):
        return VRT()


def test_the_deblurring_model_has_the_published_parameters_part_by_part(published):
    assert parameters(published) == 18_320_007
    assert parameters(published.spynet) == 1_440_300
    assert [parameters(published.get_submodule(f"stage{i}")) for i in range(1, 9)] == [
        2_027_712, 2_065_248, 2_065_248, 2_065_248, 2_029_968, 2_029_968, 2_029_968, 2_528_472,
    ]  # fmt: skip


def test_the_spike_parts_have_the_described_parameters():
    with torch.device("meta"):
        model = VRT(**DESCRIBED, spike_channels=32, encoder="conv")
        encoder_of_five = SpikeEncoder3D(5, 96)
    assert parameters(model) == 23_675_463
    assert parameters(model) - parameters(model.spikes) == 18_263_751
    assert parameters(model.spikes.encoder) == 4_812_672
    assert parameters(encoder_of_five) == 4_742_688
    assert [parameters(part) for part in model.spikes.attention] == [74_784] * 4
    assert [parameters(part) for part in model.spikes.cross_attention] == [74_976] * 4


def test_names_are_those_of_the_published_weights(published):
    names = dict(published.named_parameters())
    shapes = {
        "conv_first.weight": (96, 27, 1, 3, 3),
        "spynet.basic_module.5.basic_module.8.weight": (2, 16, 7, 7),
        "stage1.reshape.1.weight": (96,),
        "stage2.reshape.2.weight": (96, 384),
        "stage5.reshape.1.weight": (24,),
        "stage3.residual_group1.blocks.5.attn.qkv_mut.weight": (288, 96),
        "stage3.residual_group2.blocks.1.attn.relative_position_bias_table": (11 * 15 * 15, 6),
        "stage7.pa_deform.conv_offset.6.weight": (432, 96, 3, 3),
        "stage7.pa_fuse.fc12.weight": (288, 288),
        "stage8.0.2.weight": (120, 96),
        "stage8.4.residual_group.blocks.3.attn.relative_position_bias_table": (15 * 15, 6),
        "conv_last.weight": (3, 96, 1, 3, 3),
    }
    assert {name: tuple(names[name].shape) for name in shapes} == shapes


def rates_of(model: VRT, stage: int) -> list[list[float]]:
    groups = [model.get_submodule(f"stage{stage}.residual_group{i}") for i in (1, 2)]
    return [[round(block.drop_path.drop_prob * 71, 6) for block in group.blocks] for group in groups]


def test_as_published_the_self_attention_of_a_stage_is_left_out_as_often_as_its_first_layers(published):
    # The published depths: 72 layers, 0.2 of the last, in steps of 0.2 / 71.
    assert [0.2 * rate for rate in range(3)] == pytest.approx(rates_of(published, 1)[0][:3])
    assert [0.2 * rate for rate in (48, 49)] == pytest.approx(rates_of(published, 7)[1])
    rates = [module.drop_prob for module in published.modules() if type(module).__name__ == "DropPath"]
    assert len(rates) == 72 and sum(rate > 0 for rate in rates) == 70 and max(rates) == pytest.approx(0.2)
    with torch.device("meta"):
        rising = VRT(drop_path_restarts=False)
    assert [0.2 * rate for rate in (54, 55)] == pytest.approx(rates_of(rising, 7)[1])
    assert sum(module.drop_prob > 0 for module in rising.modules() if type(module).__name__ == "DropPath") == 71


def test_linear_layers_begin_as_torch_begins_them_or_small():
    torch.manual_seed(0)
    layers = [VRT(**TINY, linear_init=how).stage1.linear1 for how in ("torch", "small")]
    bound = 1 / math.sqrt(TINY["width"])
    assert 0.5 * bound < layers[0].weight.abs().max() < bound and layers[0].bias.abs().max() > 0
    assert layers[1].weight.std().item() == pytest.approx(0.02, rel=0.3) and not layers[1].bias.any()
    with pytest.raises(UserError, match="model.linear_init: 'tiny' is not known; allowed: torch, small"):
        VRT(**TINY, linear_init="tiny")


def plain_attention(q, k, v, size, shift, bias):
    """The same with a mask for every window, made by naming the 27 regions of the rolled video."""
    n, *counts, heads, length, width = q.shape
    sides = [c * s for c, s in zip(counts, size, strict=True)]
    region = torch.zeros(sides)
    for axis, (side, s, moved) in enumerate(zip(sides, size, shift, strict=True)):
        part = torch.zeros(side)
        if moved:
            part[side - s : side - moved], part[side - moved :] = 1, 2
        region += part.view([-1 if a == axis else 1 for a in range(3)]) * 3**axis
    region = region.view(counts[0], size[0], counts[1], size[1], counts[2], size[2]).permute(0, 2, 4, 1, 3, 5).reshape(*counts, length)
    apart = (region[..., :, None] != region[..., None, :]).float() * -100
    scores = q @ k.transpose(-1, -2) / math.sqrt(width) + bias + apart[:, :, :, None]
    return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 2), (0, 2, 1)])
def test_windows_of_one_kind_at_a_time_are_what_a_mask_for_each_gives(shift):
    torch.manual_seed(0)
    size = (2, 4, 3)
    q, k, v = torch.randn(3, 2, 3, 2, 3, 2, 24, 5)
    bias = torch.randn(2, 24, 24)
    assert torch.allclose(attend(q, k, v, size, shift, bias), plain_attention(q, k, v, size, shift, bias), atol=1e-5)


def test_relative_places_count_through_the_table_and_do_not_depend_on_the_size():
    full = relative_place_index((2, 3, 3))
    assert full[0, 0] == (1 * 5 + 2) * 5 + 2 and full[0, 17] == 0 and full[17, 0] == 3 * 5 * 5 - 1
    attention = WindowAttention(4, 1, (2, 3, 3), mutual=False)
    table = attention.relative_position_bias_table[:, 0]
    small = attention.relative_bias((1, 2, 2))[0]
    assert small.shape == (4, 4) and small[0, 3] == table[full[0, 4]] and small[2, 1] == table[full[3, 1]]
    assert torch.equal(attention.relative_bias((2, 3, 3))[0], table[full])


def test_the_gradient_of_the_biases_is_the_same_each_time_with_several_threads():
    attention = WindowAttention(12, 6, (6, 8, 8), mutual=False)
    gradient, before = torch.randn(6, 384, 384), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        bias, table = attention.relative_bias(attention.window), attention.relative_position_bias_table
        first, *others = (torch.autograd.grad(bias, table, gradient, retain_graph=True)[0] for _ in range(8))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, other) for other in others)


def test_positions_are_sines_of_rows_then_columns():
    positions = sine_positions(4, 4, 8)
    angle = 2 / (4 + 1e-6) * 2 * math.pi
    assert positions[1, 3, :2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)
    assert positions[3, 1, 4] == pytest.approx(math.sin(angle), abs=1e-6)
    assert positions[3, 1, 6] == pytest.approx(math.sin(angle / 100), abs=1e-6)


def layer(window, **options):
    torch.manual_seed(0)
    options = {"mutual": False, "shifted": False, "checkpoint_attn": False, "checkpoint_ffn": False} | options
    return AttentionLayer(8, 2, window, mlp_ratio=2.0, drop_path=0.0, **options).eval()


def reach(module, x, at):
    """The positions [D, H, W] of the input on which the output at one place depends."""
    x = x.clone().requires_grad_()
    module(x)[0, *at].sum().backward()
    return x.grad[0].abs().sum(-1) > 1e-12


def test_a_window_sees_itself_only_and_a_shifted_one_across_the_border():
    x = torch.randn(1, 2, 8, 8, 8)
    own = reach(layer((2, 4, 4)), x, (0, 3, 3))
    assert own[:, :4, :4].all() and own.sum() == 32
    shifted = reach(layer((2, 4, 4), shifted=True), x, (0, 3, 3))
    assert shifted[:, 2:6, 2:6].all() and shifted.sum() == 32  # two frames are one window: no shift in time
    corner = reach(layer((2, 4, 4), shifted=True), x, (0, 0, 0))
    assert corner[:, :2, :2].all() and corner.sum() == 8  # the other end of the video lies in its window, behind the seam


def test_mutual_attention_takes_two_frames_at_a_time_and_the_next_two_when_shifted():
    x = torch.randn(1, 4, 4, 4, 8)

    def frames(module, d):
        return reach(module, x, (d, 1, 1)).flatten(1).any(1).tolist()

    assert frames(layer((2, 4, 4), mutual=True), 1) == [True, True, False, False]
    assert frames(layer((2, 4, 4), mutual=True, shifted=True), 1) == [False, True, True, False]


def test_each_frame_queries_the_other_one():
    mutual = layer((2, 2, 2), mutual=True).attn
    nn.init.zeros_(mutual.qkv_self.weight)
    nn.init.zeros_(mutual.qkv_self.bias)
    nn.init.constant_(mutual.proj.bias, 0.0)
    windows = torch.randn(1, 1, 1, 1, 8, 8)
    changed = windows.clone()
    changed[..., 4:, :] += torch.randn(4, 8)
    before, after = mutual(windows, (2, 2, 2), (0, 0, 0)), mutual(changed, (2, 2, 2), (0, 0, 0))
    # Place i of the result holds what frame 1 asks frame 0 at i, and so on: the values are those of the frame at that place.
    v = mutual.qkv_mut(windows[..., :4, :] + mutual.position_bias.flatten(0, 1)).unflatten(-1, (3, 2, -1))
    q = mutual.qkv_mut(windows[..., 4:, :] + mutual.position_bias.flatten(0, 1)).unflatten(-1, (3, 2, -1))
    scores = torch.einsum("...lhe,...mhe->...hlm", q[..., 0, :, :], v[..., 1, :, :]) / 2
    first = torch.einsum("...hlm,...mhe->...lhe", scores.softmax(-1), v[..., 2, :, :]).flatten(-2)
    expected = mutual.proj(torch.cat([first, torch.zeros_like(first)], -1))
    assert torch.allclose(before[..., :4, :], expected, atol=1e-5)
    assert not torch.allclose(before[..., :4, :], after[..., :4, :], atol=1e-4)


def test_halving_and_doubling_undo_one_another():
    x = torch.randn(1, 2, 4, 6, 8)
    assert Halve()(x).shape == (1, 2, 2, 3, 32)
    assert torch.equal(Double()(Halve()(x)), x)
    assert torch.equal(Halve()(x)[0, 0, 1, 2, 8:16], x[0, 0, 3, 4])  # row first, then column: the second eighth is the row below


def flow_of(x: float, y: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).expand(len(like), 2, *like.shape[-2:]).contiguous()


def test_a_flow_says_where_to_look():
    image = torch.arange(20.0).view(1, 1, 4, 5)
    seen = warp(image, flow_of(1, 2, image))
    assert torch.allclose(seen[0, 0, :2, :4], image[0, 0, 2:, 1:], atol=1e-4) and seen[0, 0, 2:].abs().max() < 1e-4
    assert warp(image, flow_of(0.5, 0, image))[0, 0, 0, 0] == pytest.approx(0.5, abs=1e-5)
    corners = four_nearest(image, flow_of(0.3, 1.2, image))[0, :, 1, 1]
    assert corners.tolist() == [11.0, 16.0, 12.0, 17.0]  # rows 2 and 3 of column 1, then of column 2
    assert four_nearest(image, flow_of(math.nan, 0, image)).isfinite().all()
    assert four_nearest(image, flow_of(-1.5, 0, image))[0, :, 0, 1].tolist() == [0.0, 0.0, 0.0, 0.0]
    half = resize_flow(flow_of(4, 2, image), (2, 5))
    assert half[0, :, 0, 0].tolist() == [4.0, 1.0]


def test_guided_sampling_begins_as_a_convolution_of_what_the_flow_shows():
    torch.manual_seed(0)
    module, x = GuidedSampling(4, groups=2, reach=10.0), torch.randn(1, 4, 6, 6)
    out = module(x, torch.randn_like(x), flow_of(1, 0, x))
    moved = torch.roll(x, -1, 3)
    moved[..., -1] = 0
    plain = nn.functional.conv2d(moved, 0.5 * module.weight, module.bias, padding=1)
    assert torch.allclose(out[..., 1:4], plain[..., 1:4], atol=1e-5)  # at the sides the flow shows what padding hides


def test_neighbours_are_the_next_frame_and_the_one_before():
    x = torch.arange(3.0).view(1, 3, 1, 1, 1)
    none = torch.zeros(1, 2, 2, 1, 1)
    after, before = aligned_neighbours(x, (none, none), lambda frame, beside, flow: frame * 10 + beside, 1)
    assert after.flatten().tolist() == [10.0, 21.0, 0.0] and before.flatten().tolist() == [0.0, 1.0, 12.0]
    alone = aligned_neighbours(x[:, :1], (none, none), None, 4)
    assert [part.shape for part in alone] == [(1, 1, 4, 1, 1)] * 2


def test_flow_without_weights_is_none_and_learns_at_every_scale():
    torch.manual_seed(0)
    net = SpyNet(4, 4)
    first, second = torch.rand(2, 1, 1, 40, 24)
    flows = net(first, second)
    assert [tuple(flow.shape) for flow in flows] == [(1, 2, 40, 24), (1, 2, 20, 12), (1, 2, 10, 6), (1, 2, 5, 3)]
    assert all(flow.abs().max() == 0 for flow in flows)
    sum(flow.square().sum() + flow.sum() for flow in flows).backward()
    assert all(level.basic_module[-1].weight.grad.abs().sum() > 0 for level in net.basic_module)


def test_levels_finer_than_any_stage_uses_are_left_out_and_nothing_is_without_a_gradient():
    net = SpyNet(4, 4, left_out=2)
    nn.init.ones_(net.basic_module[-1].basic_module[-1].bias)  # a pixel at a quarter of the size
    assert len(net.basic_module) == 4
    flows = net(torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32))
    assert [flow.mean().item() for flow in flows] == pytest.approx([4.0, 2.0, 1.0, 0.0])
    for align_scale in (0, 2):  # a process of several would wait for ever for a gradient that does not come
        model = VRT(**TINY, in_channels=1, spike_channels=2, encoder="conv", align_scale=align_scale)
        model(torch.rand(1, 2, 1, 16, 16), torch.rand(1, 2, 2, 16, 16)).sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("encoder", ["none", "conv", "lif"])
@pytest.mark.parametrize(("d", "h", "w"), [(3, 16, 24), (1, 9, 17), (2, 20, 7)])
def test_any_clip_comes_back_in_its_own_shape(encoder, d, h, w):
    torch.manual_seed(0)
    model = VRT(**TINY, in_channels=1, spike_channels=2, encoder=encoder).eval()
    blurry, spikes = torch.rand(1, d, 1, h, w), torch.rand(1, d, 2, h, w)
    with torch.no_grad():
        restored = model(blurry, spikes)
        functional.reset_net(model)
        # What is added to fill eighths of the sides is the last row and column again.
        wider = [
            nn.functional.pad(x.flatten(0, 1), (0, -w % 8, 0, -h % 8), mode="replicate").unflatten(0, (1, d)) for x in (blurry, spikes)
        ]
        assert torch.allclose(model(*wider)[..., :h, :w], restored, atol=1e-6)
    assert restored.shape == blurry.shape and restored.isfinite().all()


def test_the_spikes_matter_and_only_with_an_encoder():
    torch.manual_seed(0)
    blurry, spikes = torch.rand(1, 2, 1, 8, 8), torch.rand(1, 2, 2, 8, 8)
    for encoder, matter in (("none", False), ("conv", True), ("lif", True)):
        model = VRT(**TINY, in_channels=1, spike_channels=2, encoder=encoder).eval()
        first = model(blurry, spikes)
        functional.reset_net(model)
        assert torch.equal(first, model(blurry, 1 - spikes)) is not matter


def test_a_frame_is_a_step_of_the_spiking_encoder():
    model = VRT(**TINY, in_channels=1, spike_channels=2, encoder="lif")
    nodes = [module for module in model.modules() if isinstance(module, LIFNode)]
    assert len(nodes) == 3 + 4 * 2 * 2
    nodes[0].count_spikes = True
    model(torch.rand(2, 3, 1, 8, 8), torch.rand(2, 3, 2, 8, 8))
    assert len(nodes[0].spike_counts) == 3
    assert not any(isinstance(module, LIFNode) for module in VRT(**TINY, spike_channels=2, encoder="conv").modules())


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
def test_recomputed_parts_give_the_very_same_gradients(flags):
    def gradients(attn: bool, ffn: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = VRT(**TINY, drop_path=0.5, in_channels=1, spike_channels=2, encoder="conv", checkpoint_attn=attn, checkpoint_ffn=ffn)
        model(torch.rand(2, 3, 1, 8, 8), torch.rand(2, 3, 2, 8, 8)).square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    kept, recomputed = gradients(False, False), gradients(*flags)
    assert all(grad is not None for name, grad in kept.items())
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_recomputation_is_honoured_by_every_layer():
    model = VRT(**TINY, spike_channels=2, encoder="conv", checkpoint_attn=True, checkpoint_ffn=True)
    parts = [module for module in model.modules() if hasattr(module, "checkpoint_attn")]
    assert len(parts) == 7 * 2 + 2 + 8 and all(part.checkpoint_attn and part.checkpoint_ffn for part in parts)

    def kept_bytes(**flags: bool) -> int:
        torch.manual_seed(0)
        model, kept = VRT(**TINY, in_channels=1, **flags), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            model(torch.rand(1, 2, 1, 16, 16))
        return sum(kept)

    everything = kept_bytes()
    assert kept_bytes(checkpoint_attn=True) < 0.8 * everything and kept_bytes(checkpoint_ffn=True) < 0.9 * everything


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels=2"),
        ({"width": 10}, "width=10"),
        ({"deform_groups": 3}, "deform_groups=3"),
        ({"window": [6, 8]}, "window"),
        ({"heads": 0}, "heads=0"),
        ({"drop_path": 1.5}, "drop_path=1.5"),
        ({"encoder": "conv", "spike_channels": 2, "spike_heads": 0}, "spike_heads=0"),
        ({"align_scale": 4}, "align_scale=4"),
        ({"still_groups": 9}, "still_groups=9"),
        ({"encoder": "snn", "spike_channels": 2}, "none, conv, lif"),
        ({"encoder": "conv"}, "no spikes"),
        ({"flow_weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_what_does_not_fit_is_said(options, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        VRT(**TINY | options)


def test_flow_weights_of_a_file(tmp_path):
    donor = SpyNet(4, 4)
    nn.init.ones_(donor.basic_module[0].basic_module[-1].bias)
    torch.save({"params": donor.state_dict()}, tmp_path / "spynet.pth")
    net = SpyNet(4, 4, weights=tmp_path / "spynet.pth")
    assert net(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))[0].mean().item() == pytest.approx(
        32.0
    )  # one pixel at a 32nd of the size
    torch.save({"params": {"basic_module.0.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of SpyNet"):
        SpyNet(4, 4, weights=tmp_path / "other.pth")
    nn.init.constant_(donor.basic_module[2].basic_module[0].weight, torch.inf)
    torch.save(donor.state_dict(), tmp_path / "broken.pth")
    with pytest.raises(UserError, match="basic_module.2.basic_module.0.weight holds other than finite real numbers"):
        SpyNet(4, 4, weights=tmp_path / "broken.pth")


def test_a_place_that_is_nan_is_not_sampled_and_is_told_by_the_output():
    module, x = GuidedSampling(4, groups=2, reach=10.0), torch.randn(1, 4, 6, 6)
    flow = torch.zeros(1, 2, 6, 6)
    flow[..., 3, 3] = float("nan")
    out = module(x, x, flow)
    assert out[..., 3, 3].isnan().all()
    flow[..., 3, 3] = 1e38  # outside of the picture
    assert module(x, x, flow).shape == x.shape


def test_attention_of_more_sequences_than_a_grid_holds_is_the_same(monkeypatch):
    q, k, v = torch.randn(3, 11, 2, 4, 8).requires_grad_()
    mask = torch.randn(2, 4, 4)
    whole = attention_batches.attend_in_batches(q, k, v, mask)
    assert torch.equal(whole, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    sizes = []
    attend = attention_batches.F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention_batches.F, "scaled_dot_product_attention", lambda q, *rest, **how: sizes.append(len(q)) or attend(q, *rest, **how)
    )
    monkeypatch.setattr(attention_batches, "GRID_LIMIT", 4)
    parts = attention_batches.attend_in_batches(q, k, v, mask)
    assert sizes == [4, 4, 3] and torch.equal(parts, whole)
    assert torch.equal(torch.autograd.grad(parts.sum(), q)[0], torch.autograd.grad(whole.sum(), q)[0])
