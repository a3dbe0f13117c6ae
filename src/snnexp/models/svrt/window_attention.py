"""Attention within windows of a video: the layers of VRT (Liang et al., IEEE TIP 2024)."""

import itertools
import math
from collections.abc import Callable

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnexp.models.svrt.attention_batches import attend_in_batches

Size = tuple[int, int, int]
MASKED = -100.0


class GEGLU(nn.Module):
    """A gated feed-forward layer, fc2(GELU(fc11(x)) * fc12(x)) (Shazeer 2020)."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc11, self.fc12, self.fc2 = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc11(x)) * self.fc12(x))


class WindowAttention(nn.Module):
    """Self-attention of the positions of each window, with a learned bias for their relative places.

    With `mutual`, for windows of two frames, each frame also queries the other, which finds what matches as a flow would; one projection
    joins both results.
    """

    def __init__(self, width: int, heads: int, window: Size, mutual: bool) -> None:
        super().__init__()
        self.heads, self.window, self.mutual = heads, window, mutual
        self.relative_position_bias_table = nn.Parameter(torch.zeros(math.prod(2 * side - 1 for side in window), heads))
        self.register_buffer("places", relative_place_index(window), persistent=False)
        self.qkv_self = nn.Linear(width, 3 * width)
        if mutual:
            self.register_buffer("position_bias", sine_positions(window[1], window[2], width), persistent=False)
            self.qkv_mut = nn.Linear(width, 3 * width)
        self.proj = nn.Linear((2 if mutual else 1) * width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, size: Size, shift: Size) -> Tensor:
        """Return windows [N, nD, nH, nW, L, C] after attention; each has `size` and L positions, in frames that were rolled by `shift`.

        Along a rolled axis, the last window joins both ends of the video, and its two halves do not see each other.
        """
        attended = attend(*self.split_heads(self.qkv_self(windows)), size, shift, self.relative_bias(size))
        if not self.mutual:
            return self.proj(attended)
        plane = (1, *size[1:])
        positions = self.position_bias[: size[1], : size[2]].reshape(1, math.prod(plane), -1)
        # Windows of one frame: [N, nD, nH, nW, 2, L / 2, C]. The frames of a window swap their queries.
        frames = windows.unflatten(4, (2, -1)) + positions
        q, k, v = (part.unflatten(5, (2, -1)) for part in self.split_heads(self.qkv_mut(frames.flatten(4, 5))))
        mutual = [attend(q[..., 1 - frame, :, :], k[..., frame, :, :], v[..., frame, :, :], plane, (0, *shift[1:])) for frame in (0, 1)]
        return self.proj(torch.cat([torch.cat(mutual, 4), attended], -1))

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [N, nD, nH, nW, heads, L, C / heads]."""
        return qkv.unflatten(-1, (3, self.heads, -1)).movedim(-2, -4).unbind(-2)

    def relative_bias(self, size: Size) -> Tensor:
        """Return the bias [heads, L, L] of the attention in windows of a `size` up to the full one."""
        if size == self.window:
            places = self.places.flatten()
        else:  # a smaller window takes the first positions along each axis, because only their distances matter
            d, h, w = (slice(side) for side in size)
            places = self.places.view(*self.window, *self.window)[d, h, w, d, h, w].reshape(-1)
        length = math.prod(size)
        # Not table[places]: the threads of a CPU would add its gradient in another order each time.
        return self.relative_position_bias_table.index_select(0, places).view(length, length, -1).permute(2, 0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, size: Size, shift: Size, bias: Tensor | None = None) -> Tensor:
    """Return the attention within each window, [N, nD, nH, nW, L, heads * E], from q, k and v [N, nD, nH, nW, heads, L, E].

    Windows that join both ends of the video along the same axes share one mask, so that no mask is made for each single window.
    """

    def attend_region(axis: int, region: tuple[slice, ...], joins: tuple[bool, ...]) -> Tensor:
        if axis < 3:
            count = q.shape[axis + 1]
            ranges = [(slice(0, count), False)] if not shift[axis] else [(slice(0, count - 1), False), (slice(count - 1, count), True)]
            parts = [attend_region(axis + 1, (*region, span), (*joins, last)) for span, last in ranges if span.start < span.stop]
            return parts[0] if len(parts) == 1 else torch.cat(parts, axis + 1)
        mask = bias
        if any(joins):
            separation = seam_mask(size, tuple(s if joined else 0 for s, joined in zip(shift, joins, strict=True)), q.device)
            mask = separation if bias is None else bias + separation
        shape = q[region].shape
        windows = (tensor[region].flatten(0, 3) for tensor in (q, k, v))
        out = attend_in_batches(*windows, None if mask is None else mask.to(q.dtype))
        return out.transpose(1, 2).reshape(*shape[:4], shape[5], -1)

    return attend_region(0, (slice(None),), ())


def seam_mask(size: Size, shift: Size, device: torch.device) -> Tensor:
    """Return a mask [L, L]: MASKED where two positions of a window lie on different sides of the seam of a rolled video, else 0."""
    behind = [torch.arange(side, device=device) >= side - moved for side, moved in zip(size, shift, strict=True)]
    behind = torch.cartesian_prod(*[axis.long() for axis in behind])
    return (behind[:, None] != behind[None]).any(-1).float() * MASKED


def relative_place_index(window: Size) -> Tensor:
    """Return for each pair of positions of a window the row in a table of all offsets within it, [L, L]."""
    positions = torch.cartesian_prod(*(torch.arange(side) for side in window)).view(-1, 3)
    offsets = positions[:, None] - positions[None] + torch.tensor(window) - 1
    spans = torch.tensor([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])
    return (offsets * spans).sum(-1)


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """Return sines and cosines of row and column, [height, width, channels], as in DETR (Carion et al., ECCV 2020)."""
    half = channels // 2
    periods = 10000.0 ** (2 * (torch.arange(half) // 2) / half)

    def waves(count: int) -> Tensor:
        angles = torch.arange(1, count + 1)[:, None] / (count + 1e-6) * 2 * math.pi / periods
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1)

    rows, columns = waves(height)[:, None].expand(-1, width, -1), waves(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1)


class AttentionLayer(nn.Module):
    """Window attention and a GEGLU layer, each after a LayerNorm and with a residual path.

    A window never exceeds the video. With `shifted`, the windows are moved by half their size along every axis that has more than one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: Size,
        *,
        mutual: bool,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
        checkpoint_attn: bool,
        checkpoint_ffn: bool,
    ) -> None:
        super().__init__()
        self.window, self.mutual, self.shifted = window, mutual, shifted
        self.checkpoint_attn, self.checkpoint_ffn = checkpoint_attn, checkpoint_ffn
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, mutual)
        self.mlp = GEGLU(width, int(width * mlp_ratio), width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the video x [N, D, H, W, C] after both halves."""
        x = x + self.drop_path(run_checkpointed(self.checkpoint_attn, self.attention, x))
        return x + self.drop_path(run_checkpointed(self.checkpoint_ffn, self.feed_forward, x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the second half, without the residual path."""
        return self.mlp(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        """Return the first half, without the residual path; zeros fill up the last windows, and are cut off again."""
        sides = x.shape[1:4]
        size = tuple(min(largest, side) for largest, side in zip(self.window, sides, strict=True))
        if self.mutual:
            size = (2, *size[1:])
        shift = tuple(s // 2 if self.shifted and side > s else 0 for s, side in zip(size, sides, strict=True))
        missing = [-side % s for s, side in zip(size, sides, strict=True)]
        x = self.norm1(x)
        if any(missing):
            x = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        if any(shift):
            x = x.roll([-s for s in shift], (1, 2, 3))
        full = x.shape
        x = x.view(full[0], *itertools.chain(*((f // s, s) for f, s in zip(full[1:4], size, strict=True))), full[4])
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)  # [N, nD, nH, nW, L, C]
        x = self.attn(x, size, shift)
        x = x.unflatten(4, size).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(full)
        if any(shift):
            x = x.roll(shift, (1, 2, 3))
        return x[:, : sides[0], : sides[1], : sides[2]]


def run_checkpointed(enabled: bool, part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Return `part` of the inputs; if `enabled`, its activations are not kept but computed again in the backward pass.

    The gradients are the same, also of parts that draw random numbers.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False)
    return part(*inputs)


class AttentionGroup(nn.Module):
    """A sequence of attention layers, every second one with shifted windows."""

    def __init__(self, width: int, heads: int, window: Size, drop_paths: list[float], *, mutual: bool = False, **layer: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AttentionLayer(width, heads, window, mutual=mutual, shifted=bool(i % 2), drop_path=rate, **layer)
            for i, rate in enumerate(drop_paths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ReconstructionGroup(nn.Module):
    """Attention layers and a linear layer with a residual path (RTMSA)."""

    def __init__(self, width: int, heads: int, window: Size, drop_paths: list[float], **layer: float) -> None:
        super().__init__()
        self.residual_group = AttentionGroup(width, heads, window, drop_paths, **layer)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.residual_group(x))
