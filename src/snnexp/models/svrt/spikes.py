"""The part of S-VRT that sees spikes: an encoder at four scales, attention along time, and attention of the frames to the result."""

import re
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.models.layers import conv_norm
from snnexp.models.neurons import make_lif
from snnexp.models.svrt.attention_batches import attend_in_batches
from snnexp.models.svrt.window_attention import run_checkpointed
from snnexp.published import Published, Table, renumber

ENCODERS = ("conv", "lif")


def published_spike_names(prefix: str = "") -> Table:
    """Return the table from the names of the published parts that see spikes to those of a SpikeFusion at `prefix` of a model."""
    layers = rf"^({re.escape(prefix)}(?:attention|cross_attention)\.\d+\.)"
    return [
        (r"^spike_encoder\.in_proj\.", f"{prefix}encoder.stem."),
        (r"^spike_encoder\.downs\.", f"{prefix}encoder.down."),
        (r"^spike_encoder\.res0\.", f"{prefix}encoder.blocks.0."),
        (r"^spike_encoder\.residuals\.(\d+)\.", renumber(f"{prefix}encoder.blocks.#.", 1)),
        (r"^spike_temporal_sa\.blocks\.", f"{prefix}attention."),
        (r"^cross_attn_fuse\.fuse_blocks\.", f"{prefix}cross_attention."),
        (rf"{layers}(?:ln1|ln_q)\.", r"\1norm1."),
        (rf"{layers}(?:ln2|ln_ffn)\.", r"\1norm2."),
        (rf"{layers}ln_kv\.", r"\1norm_spikes."),
        (rf"{layers}mlp\.", r"\1ffn."),
        (rf"{layers}attn\.attn\.", r"\1attn."),
        (rf"{layers}attn\.out_proj\.", r"\1proj."),
        (rf"{layers}attn\.in_proj_(weight|bias)$", r"\1q+kv.\2"),
    ]


class SpikeFusion(nn.Module):
    """The spikes' part of stages 1 to 4 of VRT: an encoder at four scales, attention of its features along time, cross-attention to them.

    `encoder` "conv" is the published one, of ordinary convolutions (`encoder_relu`: SpikeEncoder3D's `relu`); "lif" has spiking neurons
    (preset `neuron`, overrides `lif`). The stages of VRT call `cross_attention`.
    Raises: UserError for another encoder, and for sizes that do not fit.
    """

    published = (Published("S-VRT's parts that see spikes", published_spike_names(), form={"encoder_relu": True}),)

    def __init__(
        self,
        spike_channels: int,
        width: int,
        heads: int,
        encoder: str = "conv",
        encoder_relu: bool = True,
        neuron: str = "tet",
        lif: dict[str, Any] | None = None,
        checkpoint_attn: bool = False,
        checkpoint_ffn: bool = False,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise UserError(f"model.encoder: {encoder!r} is not known; allowed: none, {', '.join(ENCODERS)}.")
        if heads < 1 or width % heads:
            raise UserError(f"model.spike_heads={heads}: model.width={width} must be a multiple of it.")
        if encoder == "conv":
            self.encoder: nn.Module = SpikeEncoder3D(spike_channels, width, encoder_relu)
        else:
            self.encoder = SpikingEncoder(spike_channels, width, neuron, lif or {})

        self.attention, self.cross_attention = (
            nn.ModuleList(TemporalAttention(width, heads, cross, checkpoint_attn, checkpoint_ffn) for _ in range(4))
            for cross in (False, True)
        )

    def forward(self, spikes: Tensor) -> list[Tensor]:
        """Return features [N, D, H / 2^i, W / 2^i, C] at four scales from spikes [N, D, K, H, W]."""
        return [attend(x) for attend, x in zip(self.attention, self.encoder(spikes), strict=True)]


class SpikeEncoder3D(nn.Module):
    """Spikes [N, D, K, H, W] to features [N, D, H / 2^i, W / 2^i, C] at four scales, by 3x3x3 convolutions over time, rows and columns.

    This is an ordinary network on the output of a spike camera: none of its units spikes. With `relu`, as published (S-VRT), a ReLU follows
    the first convolution, each convolution that halves, and both layers of each residual block; without it, there is only a leaky ReLU
    within each block. 4,742,688 parameters with K = 5 and C = 96.
    """

    def __init__(self, spike_channels: int, width: int, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        self.stem = nn.Conv3d(spike_channels, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(width, width, 3, stride=(1, 2, 2), padding=1) for _ in range(3))
        self.blocks = nn.ModuleList(nn.Sequential(ResBlock3D(width, relu), ResBlock3D(width, relu)) for _ in range(4))

    def forward(self, spikes: Tensor) -> list[Tensor]:
        x, scales = spikes.transpose(1, 2), []
        for layer, blocks in zip((self.stem, *self.down), self.blocks, strict=True):
            x = layer(x)
            x = blocks(F.relu(x) if self.relu else x)
            scales.append(x.permute(0, 2, 3, 4, 1))
        return scales


class ResBlock3D(nn.Module):
    """Two 3x3x3 convolutions with a residual path; ReLUs after the first and after the sum, without `relu` a leaky one between the two."""

    def __init__(self, width: int, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.conv1, self.conv2 = nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.relu:
            return F.relu(x + self.conv2(F.relu(self.conv1(x))))
        return x + self.conv2(F.leaky_relu(self.conv1(x), 0.1))


class SpikingEncoder(nn.Module):
    """Features at the same four scales from spiking neurons: the spikes of each frame are one step, and the membranes carry the past.

    The convolutions see one frame only, so that the membranes alone connect the steps. Residual paths and features carry currents, not
    spikes (MS-ResNet: Hu et al., IEEE TNNLS 2024).
    """

    def __init__(self, spike_channels: int, width: int, neuron: str, lif: dict[str, Any]) -> None:
        super().__init__()
        self.stem = conv_norm(spike_channels, width, 3, 1)
        self.down = nn.ModuleList(SpikingLayer(width, neuron, lif, stride=2) for _ in range(3))
        self.blocks = nn.ModuleList(nn.ModuleList(SpikingBlock(width, neuron, lif) for _ in range(2)) for _ in range(4))

    def forward(self, spikes: Tensor) -> list[Tensor]:
        x, scales = self.stem(spikes.transpose(0, 1)), []  # [T = D, N, C, H, W]
        for i, blocks in enumerate(self.blocks):
            x = self.down[i - 1](x) if i else x
            for block in blocks:
                x = block(x)
            scales.append(x.permute(1, 0, 3, 4, 2))
        return scales


class SpikingLayer(nn.Module):
    """LIF, 3x3 convolution and batch norm: currents [T, N, C, H, W] in and out."""

    def __init__(self, width: int, neuron: str, lif: dict[str, Any], stride: int = 1) -> None:
        super().__init__()
        self.lif = make_lif(neuron, **lif)
        self.conv = conv_norm(width, width, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.lif(x))


class SpikingBlock(nn.Module):
    """Two spiking layers with a residual path."""

    def __init__(self, width: int, neuron: str, lif: dict[str, Any]) -> None:
        super().__init__()
        self.layer1, self.layer2 = SpikingLayer(width, neuron, lif), SpikingLayer(width, neuron, lif)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer2(self.layer1(x))


class TemporalAttention(nn.Module):
    """Attention of each pixel along the frames and a feed-forward layer, each after a LayerNorm and with a residual path.

    With `cross`, the queries come from x and the keys and values from the features of the spikes at the same pixel; otherwise all come
    from x.
    """

    def __init__(self, width: int, heads: int, cross: bool, checkpoint_attn: bool, checkpoint_ffn: bool) -> None:
        super().__init__()
        self.heads, self.checkpoint_attn, self.checkpoint_ffn = heads, checkpoint_attn, checkpoint_ffn
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_spikes = nn.LayerNorm(width) if cross else None
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, spikes: Tensor | None = None) -> Tensor:
        """Return x after both halves; x and `spikes` are features [N, D, H, W, C]."""
        x = x + run_checkpointed(self.checkpoint_attn, self.attention, x, spikes)
        return x + run_checkpointed(self.checkpoint_ffn, self.feed_forward, x)

    def attention(self, x: Tensor, spikes: Tensor | None) -> Tensor:
        """Return the first half, without the residual path."""
        x = self.norm1(x)
        source = x if self.norm_spikes is None else self.norm_spikes(spikes)
        # [N, D, H, W, C] to [N * H * W, heads, D, C / heads]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 4, 1, 5).flatten(0, 2)
            for part in (self.q(x), *self.kv(source).chunk(2, -1))
        )
        out = attend_in_batches(q, k, v)
        return self.proj(out.unflatten(0, (x.shape[0], *x.shape[2:4])).permute(0, 4, 1, 2, 3, 5).flatten(4))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the second half, without the residual path."""
        return self.ffn(self.norm2(x))
