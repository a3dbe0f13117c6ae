"""VGGSNN of the TET paper (Deng et al., ICLR 2022), and its variant without average pooling."""

import math
from functools import partial
from typing import Any

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from snnexp.contracts import Model
from snnexp.errors import UserError
from snnexp.models.channels import ChannelGroup, Place, channel_group
from snnexp.models.neurons import make_lif, published_form
from snnexp.published import Published

STAGES = ((64, 128), (256, 256), (512, 512), (512, 512))
SMALLEST = 16


class ConvLIF(nn.Module):
    """3x3 convolution with bias, batch norm over T and N, LIF: [T, N, C, H, W] -> [T, N, C', H', W']."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, lif: partial) -> None:
        super().__init__()
        self.conv = layer.SeqToANNContainer(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.BatchNorm2d(out_channels))
        self.lif = lif()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.conv(x))


class VGGSNN(nn.Module, Model):
    """Eight ConvLIF layers, which halve the image four times (`pool` "avg" or "stride"), and a linear layer without LIF.

    Input [T, N, C, H, W], or a still image [N, C, H, W] that is shown T times; output [T, N, num_classes].
    9,271,498 parameters at 2 channels, 48x48, 10 classes and width 1, with either `pool`.
    Raises: UserError for a size below 16, for other values that are not allowed, and for an input of another shape.
    """

    published = (
        Published(
            "VGGSNN of TET",
            [(r"^features\.(\d+)\.fwd\.module\.([01])\.", r"features.\1.conv.\2."), (r"^classifier\.module\.", "classifier.1.")],
            form=published_form("tet"),
        ),
    )

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size: int,
        T: int,
        neuron: str = "tet",
        lif: dict[str, Any] | None = None,
        width: float = 1.0,
        pool: str = "avg",
    ) -> None:
        super().__init__()
        if size < SMALLEST:
            raise UserError(
                f"model.size: {size} is too small for VGGSNN, which halves it four times; take a dataset.size of {SMALLEST} or more."
            )
        if pool not in ("avg", "stride"):
            raise UserError(f"model.pool: {pool!r} is not known; allowed: avg, stride.")
        if not width > 0:
            raise UserError(f"model.width: {width} is not allowed; the multiplier of the channel counts must be above 0.")
        self.T, self.in_channels, self.size = T, in_channels, size
        new_lif = partial(make_lif, neuron, **(lif or {}))

        blocks: list[nn.Module] = []
        channels, side = in_channels, size
        for first, second in STAGES:
            first, second = max(1, round(first * width)), max(1, round(second * width))
            blocks.append(ConvLIF(channels, first, 1, new_lif))
            blocks.append(ConvLIF(first, second, 2 if pool == "stride" else 1, new_lif))
            if pool == "avg":
                blocks.append(layer.SeqToANNContainer(nn.AvgPool2d(2)))
            channels, side = second, side // 2 if pool == "avg" else math.ceil(side / 2)
        self.features = nn.Sequential(*blocks)
        self.classifier = layer.SeqToANNContainer(nn.Flatten(), nn.Linear(channels * side * side, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.unsqueeze(0).expand(self.T, -1, -1, -1, -1)
        if x.ndim != 5 or x.shape[2:] != (self.in_channels, self.size, self.size):
            raise UserError(
                f"VGGSNN was made for [T, N, {self.in_channels}, {self.size}, {self.size}] and got {list(x.shape)}; "
                "set model.in_channels and model.size to the data's, or the data's size to the model's."
            )
        return self.classifier(self.features(x))

    def channel_groups(self) -> list[ChannelGroup]:
        """Return a group for the channels of each ConvLIF; the linear layer reads each channel of the last as a map of several pixels."""
        names = [f"features.{i}" for i, module in enumerate(self.features) if isinstance(module, ConvLIF)]
        last = self.get_submodule(names[-1]).conv[0].out_channels
        pixels = self.classifier[1].in_features // last
        readers: list[str | Place] = [f"{name}.conv" for name in names[1:]] + [Place("classifier", 1, spread=pixels)]
        return [
            channel_group(self, f"{name}.lif", carriers=[Place(f"{name}.lif", 2)], made_by=[f"{name}.conv"], read_by=[reader])
            for name, reader in zip(names, readers, strict=True)
        ]
