"""The spikes' part of S-VRT: an encoder at four scales, attention along time, and the frames' attention to what comes of it."""

import re
from typing import Any

from spikingjelly.activation_based.layer import SeqToANNContainer
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.models.neurons import make_lif
from snnexp.models.svrt.window_attention import recomputed
from snnexp.published import Published, Table, counted

ENCODERS = ("conv", "lif")


def published_names(under: str = "") -> Table:
    """From the names of the parts of S-VRT that see spikes to those of SpikeFusion, with the name that this has in a model in front."""
    layers = rf"^({re.escape(under)}(?:attention|cross_attention)\.\d+\.)"
    return [
        (r"^spike_encoder\.in_proj\.", f"{under}encoder.stem."),
        (r"^spike_encoder\.downs\.", f"{under}encoder.down."),
        (r"^spike_encoder\.res0\.", f"{under}encoder.blocks.0."),
        (r"^spike_encoder\.residuals\.(\d+)\.", counted(f"{under}encoder.blocks.#.", 1)),
        (r"^spike_temporal_sa\.blocks\.", f"{under}attention."),
        (r"^cross_attn_fuse\.fuse_blocks\.", f"{under}cross_attention."),
        (rf"{layers}(?:ln1|ln_q)\.", r"\1norm1."),
        (rf"{layers}(?:ln2|ln_ffn)\.", r"\1norm2."),
        (rf"{layers}ln_kv\.", r"\1norm_spikes."),
        (rf"{layers}mlp\.", r"\1ffn."),
        (rf"{layers}attn\.attn\.", r"\1attn."),
        (rf"{layers}attn\.out_proj\.", r"\1proj."),
        (rf"{layers}attn\.in_proj_(weight|bias)$", r"\1q+kv.\2"),
    ]


class SpikeFusion(nn.Module):
    """What the stages 1 to 4 of VRT learn from spikes: features of theirs at four scales attend along time, and are attended to.

    `encoder` "conv" is the published one, of ordinary convolutions (`encoder_relu`: SpikeEncoder3D's `relu`); "lif" has spiking neurons
    (preset `neuron`, overrides `lif`).
    Raises: UserError for another encoder, and for sizes that do not fit.
    """

    published = (Published("S-VRT's parts that see spikes", published_names(), form={"encoder_relu": True}),)

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

        def attention(cross: bool) -> nn.ModuleList:
            return nn.ModuleList(TemporalAttention(width, heads, cross, checkpoint_attn, checkpoint_ffn) for _ in range(4))

        self.attention, self.cross_attention = attention(cross=False), attention(cross=True)

    def forward(self, spikes: Tensor) -> list[Tensor]:
        """Spikes [N, D, K, H, W] to features [N, D, H / 2^i, W / 2^i, C]."""
        return [attend(x) for attend, x in zip(self.attention, self.encoder(spikes), strict=True)]


class SpikeEncoder3D(nn.Module):
    """Spikes [N, D, K, H, W] to features [N, D, H / 2^i, W / 2^i, C] at four scales, by 3x3x3 convolutions over time, rows and columns.

    An ordinary network on a spiking camera's output: none of its own units spikes. With `relu`, as published (S-VRT), a ReLU follows the
    first convolution, each that halves, and both layers of each residual block; without, a leaky one is all, within the blocks.
    4,742,688 parameters with K = 5 and C = 96.
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
    """Two 3x3x3 convolutions beside a residual path, a ReLU behind the first and behind the sum; without `relu` a leaky one between."""

    def __init__(self, width: int, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.conv1, self.conv2 = nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.relu:
            return F.relu(x + self.conv2(F.relu(self.conv1(x))))
        return x + self.conv2(F.leaky_relu(self.conv1(x), 0.1))


class SpikingEncoder(nn.Module):
    """The same scales by spiking neurons: each frame's spikes are one step of LIF neurons, whose membranes carry what came before.

    Convolutions see one frame only, so that time passes in the membranes alone; residual paths carry currents, not spikes (MS-ResNet:
    Hu et al., IEEE TNNLS 2024), and so do the features.
    """

    def __init__(self, spike_channels: int, width: int, neuron: str, lif: dict[str, Any]) -> None:
        super().__init__()
        self.stem = SeqToANNContainer(nn.Conv2d(spike_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
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
    """LIF, 3x3 convolution, batch normalisation: currents [T, N, C, H, W] in and out."""

    def __init__(self, width: int, neuron: str, lif: dict[str, Any], stride: int = 1) -> None:
        super().__init__()
        self.lif = make_lif(neuron, **lif)
        self.conv = SeqToANNContainer(nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.lif(x))


class SpikingBlock(nn.Module):
    """Two spiking layers beside a residual path."""

    def __init__(self, width: int, neuron: str, lif: dict[str, Any]) -> None:
        super().__init__()
        self.layer1, self.layer2 = SpikingLayer(width, neuron, lif), SpikingLayer(width, neuron, lif)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer2(self.layer1(x))


class TemporalAttention(nn.Module):
    """Attention of each pixel along the frames, and a feed-forward layer, each behind a LayerNorm and beside a residual path.

    `cross`: the queries are those of x, keys and values come from the spikes' features at the same pixel; otherwise all are x's own.
    """

    def __init__(self, width: int, heads: int, cross: bool, checkpoint_attn: bool, checkpoint_ffn: bool) -> None:
        super().__init__()
        self.heads, self.checkpoint_attn, self.checkpoint_ffn = heads, checkpoint_attn, checkpoint_ffn
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_spikes = nn.LayerNorm(width) if cross else None
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, spikes: Tensor | None = None) -> Tensor:
        """Features x and `spikes` [N, D, H, W, C]; the shape of x."""
        x = x + recomputed(self.checkpoint_attn, self.attention, x, spikes)
        return x + recomputed(self.checkpoint_ffn, self.feed_forward, x)

    def attention(self, x: Tensor, spikes: Tensor | None) -> Tensor:
        """The first half."""
        x = self.norm1(x)
        source = x if self.norm_spikes is None else self.norm_spikes(spikes)
        # [N, D, H, W, C] to [N * H * W, heads, D, C / heads]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 4, 1, 5).flatten(0, 2)
            for part in (self.q(x), *self.kv(source).chunk(2, -1))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.unflatten(0, (x.shape[0], *x.shape[2:4])).permute(0, 4, 1, 2, 3, 5).flatten(4))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half."""
        return self.ffn(self.norm2(x))
