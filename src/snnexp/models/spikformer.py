"""Spikformer (Zhou et al., ICLR 2023): a transformer of spikes, for still images and for event frames."""

import itertools
from functools import partial
from typing import Any

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from snnexp.contracts import Model
from snnexp.errors import UserError
from snnexp.models.channels import ChannelGroup, Place, channel_group
from snnexp.models.layers import conv_norm
from snnexp.models.neurons import make_lif, published_form
from snnexp.published import Published, Table

STAGES = 4  # of the patch splitting: the last has all features, each earlier one half as many as the next
PUBLISHED_NEURON = published_form("spikingjelly", detach_reset=True)
ATTENTION_THRESHOLD = 0.5  # of the LIF behind the attention


class Stage(nn.Module):
    """3x3 convolution, batch norm over T and N, LIF, and with `halves` 3x3 max pooling: [T, N, C, H, W] -> [T, N, C', H', W']."""

    def __init__(self, in_channels: int, out_channels: int, halves: bool, lif: partial) -> None:
        super().__init__()
        self.conv = conv_norm(in_channels, out_channels, 3, 1)
        self.lif = lif()
        self.pool = layer.SeqToANNContainer(nn.MaxPool2d(3, 2, padding=1)) if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.lif(self.conv(x)))


class SPS(nn.Module):
    """Spiking patch splitting: four stages, of which the last `pools` halve the image, and a relative position embedding that is added.

    Input [T, N, C, H, W], output tokens [T, N, L, dim] with L = H W / 4^pools; every value is 0, 1 or 2.
    """

    def __init__(self, in_channels: int, dim: int, pools: int, lif: partial) -> None:
        super().__init__()
        channels = [in_channels, *(dim >> shift for shift in reversed(range(STAGES)))]
        self.stages = nn.Sequential(*(Stage(channels[i], channels[i + 1], i >= STAGES - pools, lif) for i in range(STAGES)))
        self.rpe = Stage(dim, dim, False, lif)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x)
        x = x + self.rpe(x)
        return x.flatten(3).transpose(2, 3).contiguous()  # no copy in channels_last memory


class LinearNorm(nn.Sequential):
    """Linear layer and batch norm over T, N and L: tokens [T, N, L, C] -> [T, N, L, C']."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(nn.Linear(in_features, out_features, bias), nn.BatchNorm1d(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 2)).unflatten(0, x.shape[:3])


def attention(q: Tensor, k: Tensor, v: Tensor, by_tokens: bool | None = None) -> Tensor:
    """Return q kᵀ v, all [..., L, D]: as (q kᵀ) v if `by_tokens`, as q (kᵀ v) if not, or (None) in the cheaper order.

    There is no softmax in between. For spikes both orders give the same numbers: sums of 0 and 1, exact in fp32.
    """
    L, D = q.shape[-2:]
    if L <= D if by_tokens is None else by_tokens:
        return (q @ k.mT) @ v
    return q @ (k.mT @ v)


class SSA(nn.Module):
    """Spiking self-attention: LIF(scale q kᵀ v) of each head, then a linear layer with LIF: tokens [T, N, L, C] -> [T, N, L, C].

    Pruning changes `heads` and the widths of q, k, v and proj, so the width of a head is read from the tensors.
    """

    def __init__(self, dim: int, heads: int, scale: float, qkv_bias: bool, lif: partial) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.q, self.q_lif = LinearNorm(dim, dim, qkv_bias), lif()
        self.k, self.k_lif = LinearNorm(dim, dim, qkv_bias), lif()
        self.v, self.v_lif = LinearNorm(dim, dim, qkv_bias), lif()
        self.lif = lif(v_threshold=ATTENTION_THRESHOLD)
        self.proj, self.proj_lif = LinearNorm(dim, dim), lif()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.q_lif(self.q(x)), self.k_lif(self.k(x)), self.v_lif(self.v(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in spikes)
        x = attention(q, k, v).transpose(2, 3).flatten(3) * self.scale
        return self.proj_lif(self.proj(self.lif(x)))


class MLP(nn.Module):
    """Two linear layers with batch norm and LIF each: tokens [T, N, L, C] -> [T, N, L, C]."""

    def __init__(self, dim: int, hidden: int, lif: partial) -> None:
        super().__init__()
        self.fc1, self.lif1 = LinearNorm(dim, hidden), lif()
        self.fc2, self.lif2 = LinearNorm(hidden, dim), lif()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


class SpikformerBlock(nn.Module):
    """Attention and MLP, each added to its input: tokens [T, N, L, C] -> [T, N, L, C], whole numbers of 0 or more."""

    def __init__(self, dim: int, heads: int, hidden: int, scale: float, qkv_bias: bool, lif: partial) -> None:
        super().__init__()
        self.attention = SSA(dim, heads, scale, qkv_bias, lif)
        self.mlp = MLP(dim, hidden, lif)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


def published_names(layer: str) -> Table:
    """Return the table of names in the authors' code, whose attention and MLP layers are called `layer`: "linear", for events "conv"."""
    return [
        (r"\.norm[12]\.|^norm\.|^pos_embed$", None),  # not used in their code either
        (r"^patch_embed\.proj_(conv|bn)\.", r"patch_embed.proj_\g<1>0."),
        (r"^patch_embed\.proj_conv(\d)\.", r"sps.stages.\1.conv.0."),
        (r"^patch_embed\.proj_bn(\d)\.", r"sps.stages.\1.conv.1."),
        (r"^patch_embed\.rpe_conv\.", "sps.rpe.conv.0."),
        (r"^patch_embed\.rpe_bn\.", "sps.rpe.conv.1."),
        (rf"^block\.(\d+)\.attn\.(\w+?)_{layer}\.", r"blocks.\1.attention.\2.0."),
        (r"^block\.(\d+)\.attn\.(\w+?)_bn\.", r"blocks.\1.attention.\2.1."),
        (rf"^block\.(\d+)\.mlp\.(\w+?)_{layer}\.", r"blocks.\1.mlp.\2.0."),
        (r"^block\.(\d+)\.mlp\.(\w+?)_bn\.", r"blocks.\1.mlp.\2.1."),
    ]


class Spikformer(nn.Module, Model):
    """Patch splitting (SPS), `depth` blocks of attention and MLP, and a linear layer without LIF on the mean of the tokens.

    Input [T, N, C, H, W], or a still image [N, C, H, W] that is shown T times; output [T, N, num_classes]. H and W are multiples of
    2^pools. Parameters at 10 classes: 9,324,730 with 4 blocks of 384 features and 3 channels (4-256: 4,155,178, 2-384: 5,765,050), and
    2,566,666 for the events form (depth 2, dim 256, pools 4, no qkv_bias) with 2 channels. Published counts are larger by what the authors'
    code holds and does not use: two LayerNorms in each block (4-384: 6,144), for events also a last one and a position embedding (18,944).
    `linear_init` sets the first weights of linear layers: "small" is a truncated normal of deviation 0.02 with bias 0; "torch" is torch's
    own for all but the last, as in the authors' code for events, where these layers are convolutions.
    Raises: UserError for values that are not allowed, and for an input of another shape.
    """

    published = (
        Published("Spikformer", published_names("linear"), form=PUBLISHED_NEURON | {"scale": 0.125}),
        Published("Spikformer for events", published_names("conv"), form=PUBLISHED_NEURON | {"scale": 0.25}),
    )

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size: int,
        T: int,
        neuron: str = "spikingjelly",
        lif: dict[str, Any] | None = None,
        depth: int = 4,
        dim: int = 384,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        pools: int = 2,
        qkv_bias: bool = True,
        scale: float = 0.125,
        linear_init: str = "small",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"model.depth: {depth} is not allowed; it must be at least 1.")
        if dim < 1 or dim % 2 ** (STAGES - 1):
            raise UserError(f"model.dim: {dim} is not allowed; SPS begins with an eighth of it, so it must be a multiple of 8.")
        if heads < 1 or dim % heads:
            divisors = [n for n in range(1, dim + 1) if dim % n == 0]
            closest = min(divisors, key=lambda n: abs(n - heads))
            raise UserError(f"model.heads: {heads} does not divide model.dim={dim}; the nearest number that does is {closest}.")
        if not mlp_ratio > 0:
            raise UserError(f"model.mlp_ratio: {mlp_ratio} is not allowed; the MLP's width in units of model.dim must be above 0.")
        if not 0 <= pools <= STAGES:
            raise UserError(f"model.pools: {pools} is not allowed; of the {STAGES} stages 0 to {STAGES} may halve the image.")
        if not scale > 0:
            raise UserError(f"model.scale: {scale} is not allowed; the factor of the attention must be above 0.")
        if linear_init not in ("small", "torch"):
            raise UserError(f"model.linear_init: {linear_init!r} is not known; allowed: small, torch.")
        self.T, self.in_channels, self.pools = T, in_channels, pools
        patch = 2**pools
        if size < 1 or size % patch:
            above = max(1, -(-size // patch)) * patch
            sizes = f"{above - patch} or {above}" if above > patch else f"{above}"
            raise UserError(
                f"model.size: {size} is no multiple of {patch}, and model.pools={pools} halves the image {pools} times; "
                f"take data of size {sizes} (dataset.size), or fewer model.pools."
            )
        # The paper detaches the reset; neither preset does.
        new_lif = partial(make_lif, neuron, **({"detach_reset": True} | (lif or {})))

        self.sps = SPS(in_channels, dim, pools, new_lif)
        hidden = max(1, round(dim * mlp_ratio))
        self.blocks = nn.Sequential(*(SpikformerBlock(dim, heads, hidden, scale, qkv_bias, new_lif) for _ in range(depth)))
        self.head = nn.Linear(dim, num_classes)

        for module in self.modules() if linear_init == "small" else [self.head]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.unsqueeze(0).expand(self.T, -1, -1, -1, -1)
        patch = 2**self.pools
        if x.ndim != 5 or x.shape[2] != self.in_channels or x.shape[3] % patch or x.shape[4] % patch:
            raise UserError(
                f"Spikformer was made for [T, N, {self.in_channels}, H, W] with H and W multiples of {patch} and got {list(x.shape)}; "
                "set model.in_channels to the data's, and dataset.size or model.pools so that it divides."
            )
        return self.head(self.blocks(self.sps(x)).mean(2))

    def channel_groups(self) -> list[ChannelGroup]:
        """Return a group for each stage of SPS but the last, the heads of each attention, the hidden layer of each MLP, the embedding.

        The embedding is what the residual sums join: the features of the last stage, of the position embedding and of all blocks.
        """
        stages = [f"sps.stages.{i}" for i in range(STAGES)]
        groups = [
            channel_group(self, f"{stage}.lif", carriers=[Place(f"{stage}.lif", 2)], made_by=[f"{stage}.conv"], read_by=[f"{after}.conv"])
            for stage, after in itertools.pairwise(stages)
        ]
        embedding = [Place(f"{stages[-1]}.lif", 2), Place("sps.rpe.lif", 2)]
        made_by, read_by = [f"{stages[-1]}.conv", "sps.rpe.conv"], ["sps.rpe.conv", "head"]
        for i, block in enumerate(self.blocks):
            ssa, mlp = f"blocks.{i}.attention", f"blocks.{i}.mlp"
            embedding += [Place(f"{ssa}.proj_lif", 3), Place(f"{mlp}.lif2", 3)]
            made_by += [f"{ssa}.proj", f"{mlp}.fc2"]
            read_by += [f"{ssa}.q", f"{ssa}.k", f"{ssa}.v", f"{mlp}.fc1"]
            width = block.attention.proj[0].in_features // block.attention.heads
            groups.append(
                channel_group(
                    self,
                    ssa,
                    carriers=[Place(f"{ssa}.{name}_lif", 3, width) for name in "qkv"],
                    made_by=[f"{ssa}.{name}" for name in "qkv"],
                    read_by=[f"{ssa}.proj"],
                    spread=width,
                    heads=[ssa],
                )
            )
            groups.append(
                channel_group(self, f"{mlp}.lif1", carriers=[Place(f"{mlp}.lif1", 3)], made_by=[f"{mlp}.fc1"], read_by=[f"{mlp}.fc2"])
            )
        groups.append(channel_group(self, "embedding", carriers=embedding, made_by=made_by, read_by=read_by))
        return groups
