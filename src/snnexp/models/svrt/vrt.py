"""VRT, the video restoration transformer (Liang et al., IEEE TIP 2024), in its form for deblurring, and S-VRT, which also sees spikes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.contracts import Model
from snnexp.errors import UserError, nearest
from snnexp.models.svrt.flow import GuidedSampling, SpyNet, four_nearest
from snnexp.models.svrt.spikes import SpikeFusion, published_spike_names
from snnexp.models.svrt.window_attention import GEGLU, AttentionGroup, ReconstructionGroup
from snnexp.published import Published

SCALES = (0, 1, 2, 3, 2, 1, 0)
"""How often the frames are halved in each of the seven stages."""

INITS = ("torch", "small")

CONSTANTS = r"(relative_position_index|position_bias|spynet\.(mean|std))$"
"""Entries of published files that follow from the sizes."""

Flows = tuple[Tensor, Tensor]
"""The flows from each frame to the next, and from each frame to the one before, [N, D - 1, 2, H, W] each; x and y in pixels."""


class VRT(nn.Module, Model):
    """Frames [N, D, C, H, W] (0 to 1) to sharp frames of the same shape; any D, H and W.

    Seven stages at the scales 1, 1/2, 1/4, 1/8 and back attend within windows, first two frames at a time, then over `window` (frames,
    rows, columns), and align the neighbours of each frame with it along an optical flow. Groups at full size follow; the last
    `still_groups` of them look at single frames. The result is a correction that is added to the frames.
    The stages have `width` channels, the groups `last_width`. Stages at scales finer than `align_scale` do not align neighbours.
    `checkpoint_attn` and `checkpoint_ffn` trade time for memory: they compute these halves of each layer again in the backward pass.
    `flow_weights` names a file with weights of SpyNet.
    `drop_path` is the rate at which training skips the last layer; the rate rises evenly from 0 at the first layer. As published, the rates
    of a stage belong to its mutual layers, and its other layers start again with the first of these rates; without `drop_path_restarts`
    they go on rising. `linear_init` "torch" is the published one; "small" draws the weights of linear layers from a normal of deviation
    0.02, with bias 0.
    With an `encoder` it is S-VRT: after each of the stages 1 to 4 the frames attend to the spikes (SpikeFusion, with `spike_heads` heads).
    18,320,007 parameters with the widths and depths of the published deblurring model, whose names the entries have (init_from=FILE);
    23,675,463 for S-VRT as described with 32 spike channels, of which its backbone has 18,263,751.
    Raises: UserError for sizes that do not fit together.
    """

    published = (
        Published("VRT", [(CONSTANTS, None)]),
        Published(
            "S-VRT", [(rf"^vrt\..*{CONSTANTS}", None), (r"^vrt\.", ""), *published_spike_names("spikes.")], form={"encoder_relu": True}
        ),
    )
    kinds = ("video",)
    deterministic_on_cuda = False  # because of the backward passes of grid_sample and deform_conv2d

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: int = 96,
        last_width: int = 120,
        depth: int = 8,
        last_depth: int = 4,
        groups: int = 4,
        still_groups: int = 2,
        heads: int = 6,
        window: list[int] | tuple[int, ...] = (6, 8, 8),
        mutual: float = 0.75,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.2,
        drop_path_restarts: bool = True,
        linear_init: str = "torch",
        deform_groups: int = 16,
        reach: float = 10.0,
        align_scale: int = 0,
        flow_width: int = 32,
        flow_weights: str | Path | None = None,
        spike_channels: int | None = None,
        encoder: str = "none",
        encoder_relu: bool = True,
        spike_heads: int = 4,
        neuron: str = "tet",
        lif: dict[str, Any] | None = None,
        checkpoint_attn: bool = False,
        checkpoint_ffn: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_channels, width, last_width, heads, window, deform_groups, align_scale, still_groups, groups)
        for key, value in (("mutual", mutual), ("drop_path", drop_path)):
            if not 0 <= value <= 1:
                raise UserError(f"model.{key}={value}: a fraction, from 0 to 1.")
        if linear_init not in INITS:
            raise UserError(f"model.linear_init: {linear_init!r} is not known; allowed: {', '.join(INITS)}.{nearest(linear_init, INITS)}")
        self.spynet = SpyNet(flow_width, len(set(SCALES)), align_scale, flow_weights)
        self.conv_first = nn.Conv3d(9 * in_channels, width, (1, 3, 3), padding=(0, 1, 1))
        layer = {"mlp_ratio": mlp_ratio, "checkpoint_attn": checkpoint_attn, "checkpoint_ffn": checkpoint_ffn}
        first, rest = 7 * depth, groups * last_depth
        rates = [drop_path * i / (first + rest - 1) for i in range(first + rest)]  # deeper layers are left out more often
        size = tuple(window)
        for i, scale in enumerate(SCALES):
            shape = "same" if i == 0 else "down" if scale > SCALES[i - 1] else "up"
            drop_paths = rates[i * depth : (i + 1) * depth]
            align = (deform_groups, reach / 2**scale) if scale >= align_scale else None
            count = int(depth * mutual)
            others = drop_paths[: depth - count] if drop_path_restarts else drop_paths[count:]
            stage = Stage(width, heads, size, drop_paths[:count], others, shape, align, layer)
            self.add_module(f"stage{i + 1}", stage)
        widen = nn.Sequential(nn.Identity(), nn.LayerNorm(width), nn.Linear(width, last_width))  # named as in the published weights
        self.stage8 = nn.ModuleList([widen])
        for i in range(groups):
            drop_paths = rates[first + i * last_depth : first + (i + 1) * last_depth]
            group_window = (1, *size[1:]) if i >= groups - still_groups else size
            self.stage8.append(ReconstructionGroup(last_width, heads, group_window, drop_paths, mutual=False, **layer))
        self.norm = nn.LayerNorm(last_width)
        self.conv_after_body = nn.Linear(last_width, width)
        self.conv_last = nn.Conv3d(width, in_channels, (1, 3, 3), padding=(0, 1, 1))
        if linear_init == "small":
            self.apply(init_small)
        self.spikes = None
        if encoder != "none":
            if not spike_channels:
                raise UserError("model.encoder: these data have no spikes; choose model=vrt, or data that have.")
            flags = checkpoint_attn, checkpoint_ffn
            self.spikes = SpikeFusion(spike_channels, width, spike_heads, encoder, encoder_relu, neuron, lif, *flags)

    def forward(self, blurry: Tensor, spikes: Tensor | None = None) -> Tensor:
        """Return the restored frames; the spikes around each frame, [N, D, K, H, W], count only if the model has an encoder for them."""
        h, w = blurry.shape[-2:]
        spike_features = None if self.spikes is None else self.spikes(pad_to_multiple(spikes))
        frames = pad_to_multiple(blurry)
        flows = self.flows(frames)
        x = torch.cat([frames, *aligned_neighbours(frames, flows[0], lambda x, beside, flow: four_nearest(x, flow), 4)], 2)
        x = self.conv_first(x.transpose(1, 2)).permute(0, 2, 3, 4, 1)
        x = x + self.conv_after_body(self.body(x, flows, spike_features))
        restored = frames + self.conv_last(x.permute(0, 4, 1, 2, 3)).transpose(1, 2)
        return restored[..., :h, :w]

    def body(self, x: Tensor, flows: list[Flows], spike_features: list[Tensor] | None) -> Tensor:
        """Return x [N, D, H, W, C] after the stages, on whose way up the features of the same scale are added, and the groups."""
        skips = []
        for scale in range(4):
            x = self.get_submodule(f"stage{scale + 1}")(x, flows[scale])
            x = x if spike_features is None else self.spikes.cross_attention[scale](x, spike_features[scale])
            skips.append(x)
        x = self.stage5(x, flows[2])
        x = self.stage6(x + skips[2], flows[1])
        x = self.stage7(x + skips[1], flows[0]) + skips[0]
        for group in self.stage8:
            x = group(x)
        return self.norm(x)

    def flows(self, frames: Tensor) -> list[Flows]:
        """Return the flows at each scale, the finest first."""
        count = frames.shape[1] - 1
        first, second = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        if not count:
            sides = [(frames.shape[3] >> scale, frames.shape[4] >> scale) for scale in range(4)]
            return [(empty := frames.new_zeros(len(frames), 0, 2, *side), empty) for side in sides]
        both = self.spynet(torch.cat([first, second]), torch.cat([second, first]))
        return [tuple(part.unflatten(0, (-1, count)) for part in flow.chunk(2)) for flow in both]


class Stage(nn.Module):
    """One stage of VRT: features [N, D, H, W, C] at the scale of the stage before ("same"), half of it ("down") or twice it ("up").

    It has a mutual layer and a self-attention layer for each rate of the two lists of drop paths. With `align` (groups, reach), it also
    samples the features of both neighbouring frames along the flow and merges them.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: tuple[int, int, int],
        mutual_drop_paths: list[float],
        drop_paths: list[float],
        shape: str,
        align: tuple[int, float] | None,
        layer: dict[str, float],
    ) -> None:
        super().__init__()
        inner = {"same": width, "down": 4 * width, "up": width // 4}[shape]
        move = {"same": nn.Identity, "down": Halve, "up": Double}[shape]()
        narrow = [] if shape == "same" else [nn.Linear(inner, width)]
        self.reshape = nn.Sequential(move, nn.LayerNorm(inner), *narrow)
        self.residual_group1 = AttentionGroup(width, heads, (2, *window[1:]), mutual_drop_paths, mutual=True, **layer)
        self.linear1 = nn.Linear(width, width)
        self.residual_group2 = AttentionGroup(width, heads, window, drop_paths, **layer)
        self.linear2 = nn.Linear(width, width)
        self.pa_deform = None if align is None else GuidedSampling(width, *align)
        self.pa_fuse = None if align is None else GEGLU(3 * width, 3 * width, width)

    def forward(self, x: Tensor, flows: Flows) -> Tensor:
        """Return the features at the scale of this stage; `flows` have that scale too."""
        x = self.reshape(x)
        x = x + self.linear1(self.residual_group1(x))
        x = x + self.linear2(self.residual_group2(x))
        if self.pa_deform is None:
            return x
        images = x.permute(0, 1, 4, 2, 3)
        aligned = [part.permute(0, 1, 3, 4, 2).to(x.dtype) for part in aligned_neighbours(images, flows, self.pa_deform, 1)]
        return self.pa_fuse(torch.cat([x, *aligned], -1))


class Halve(nn.Module):
    """Join four pixels to one with four times the channels, [N, D, H, W, C] to [N, D, H / 2, W / 2, 4 C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 5, 3, 6).flatten(4)


class Double(nn.Module):
    """Divide one pixel into four with a quarter of the channels, the reverse of Halve."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(4, (2, 2, -1)).permute(0, 1, 2, 5, 3, 4, 6).flatten(2, 3).flatten(3, 4)


def aligned_neighbours(x: Tensor, flows: Flows, align: Callable[[Tensor, Tensor, Tensor], Tensor], factor: int) -> list[Tensor]:
    """Return, for each frame of x [N, D, C, H, W], the next frame and the one before, aligned with it: [N, D, factor * C, H, W] each.

    `align` gets the features of the neighbour, those of the frame, and the flow. At the ends of the video zeros stand for the neighbour.
    """
    n, d, c, h, w = x.shape
    zeros = x.new_zeros(n, 1, factor * c, h, w)
    if d == 1:
        return [zeros, zeros]
    early, late = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)
    forth, back = (flow.flatten(0, 1) for flow in flows)
    after, before = (part.unflatten(0, (n, d - 1)) for part in (align(late, early, forth), align(early, late, back)))
    return [torch.cat([after, zeros.to(after.dtype)], 1), torch.cat([zeros.to(before.dtype), before], 1)]


def pad_to_multiple(frames: Tensor) -> Tensor:
    """Return frames [N, D, C, H, W] with sides that can be halved three times; the last row and column are repeated."""
    h, w = frames.shape[-2:]
    if h % 8 == 0 and w % 8 == 0:
        return frames
    return F.pad(frames.flatten(0, 1), (0, -w % 8, 0, -h % 8), mode="replicate").unflatten(0, frames.shape[:2])


def init_small(module: nn.Module) -> None:
    """Draw the weights of a linear layer from a truncated normal of deviation 0.02, with bias 0, as in vision transformers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def check_sizes(
    in_channels: int,
    width: int,
    last_width: int,
    heads: int,
    window: list[int] | tuple[int, ...],
    deform_groups: int,
    align_scale: int,
    still_groups: int,
    groups: int,
) -> None:
    """Raise a UserError if the sizes of a model do not fit together."""
    if in_channels not in (1, 3):
        raise UserError(f"model.in_channels={in_channels}: frames are grey (1) or in colour (3).")
    for key, value in (("heads", heads), ("deform_groups", deform_groups)):
        if value < 1:
            raise UserError(f"model.{key}={value}: must be at least 1.")
    for key, value in (("width", width), ("last_width", last_width)):
        if value < 1 or value % heads or value % 4:
            raise UserError(f"model.{key}={value}: must be a multiple of 4 and of model.heads={heads}.")
    if width % deform_groups:
        raise UserError(f"model.deform_groups={deform_groups}: model.width={width} must be a multiple of it.")
    if len(window) != 3 or min(window) < 1:
        raise UserError(f"model.window={list(window)}: three numbers from 1 on: frames, rows, columns.")
    if not 0 <= align_scale <= max(SCALES):
        raise UserError(f"model.align_scale={align_scale}: 0 (full size) to {max(SCALES)} (an eighth).")
    if not 0 <= still_groups <= groups:
        raise UserError(f"model.still_groups={still_groups}: of model.groups={groups}, 0 to all.")
