"""ResNet-19 of the TET paper (Deng et al., ICLR 2022), after tdBN (Zheng et al., AAAI 2021) with plain batch norm."""

from functools import partial
from typing import Any

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from snnexp.contracts import Model
from snnexp.errors import UserError
from snnexp.models.channels import ChannelGroup, Place, channel_group
from snnexp.models.layers import conv_norm
from snnexp.models.neurons import make_lif, published_form
from snnexp.published import Published, renumber

STAGES = ((128, 3, 1), (256, 3, 2), (512, 2, 2))  # channels, blocks, stride of the first block


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a LIF between them, and a LIF after the shortcut is added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, lif: partial) -> None:
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels, 3, stride)
        self.lif1 = lif()
        self.conv2 = conv_norm(out_channels, out_channels, 3, 1)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride)
        self.lif2 = lif()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.conv2(self.lif1(self.conv1(x))) + self.shortcut(x))


class ResNet19(nn.Module, Model):
    """A 3x3 stem, eight residual blocks of 128, 256 and 512 channels, and two linear layers with a LIF between them.

    Input [T, N, C, H, W], or a still image [N, C, H, W] that is shown T times; output [T, N, num_classes].
    12,630,858 parameters at 3 channels and 10 classes, 12,653,988 at 100 classes; the image may have any size of 4 or more. `conv_init`
    sets the first weights of the convolutions: "kaiming" is normal by fan-out (He et al. 2015), "torch" is torch's own, as in the authors'
    code.
    Raises: UserError for a smaller size, for options that are not allowed, and for an input with another number of channels.
    """

    published = (
        Published(
            "ResNet-19 of TET",
            [
                (r"\.seqbn\.|^bn1\.seqbn", None),  # copies: their wrappers, which repeat a layer over the steps, hold the layer once more
                (r"(^|\.)(conv|fc)[12]_s\.", None),
                (r"^conv1\.", "stem.0."),
                (r"^bn1\.bn\.", "stem.1."),
                *((rf"^layer{i + 1}\.(\d+)\.", renumber("blocks.#.", sum(n for _, n, _ in STAGES[:i]))) for i in range(len(STAGES))),
                (r"\.conv([12])\.", r".conv\1.0."),
                (r"\.bn([12])\.bn\.", r".conv\1.1."),
                (r"\.downsample\.layer\.module\.", ".shortcut.0."),
                (r"\.downsample\.bn\.bn\.", ".shortcut.1."),
                (r"^fc([12])\.", r"fc\1.0."),
            ],
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
        conv_init: str = "kaiming",
    ) -> None:
        super().__init__()
        if size < 4:
            raise UserError(f"model.size: {size} is too small for ResNet-19, which halves it twice; take a dataset.size of 4 or more.")
        if not width > 0:
            raise UserError(f"model.width: {width} is not allowed; the multiplier of the channel counts must be above 0.")
        if conv_init not in ("kaiming", "torch"):
            raise UserError(f"model.conv_init: {conv_init!r} is not known; allowed: kaiming, torch.")
        self.T, self.in_channels = T, in_channels
        new_lif = partial(make_lif, neuron, **(lif or {}))

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        channels = scaled(64)
        self.stem = conv_norm(in_channels, channels, 3, 1)
        self.stem_lif = new_lif()
        blocks = []
        for out_channels, count, stride in STAGES:
            for index in range(count):
                blocks.append(ResidualBlock(channels, scaled(out_channels), stride if index == 0 else 1, new_lif))
                channels = scaled(out_channels)
        self.blocks = nn.Sequential(*blocks)
        self.pool = layer.SeqToANNContainer(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc1 = layer.SeqToANNContainer(nn.Linear(channels, scaled(256)))
        self.fc1_lif = new_lif()
        self.fc2 = layer.SeqToANNContainer(nn.Linear(scaled(256), num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d) and conv_init == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.unsqueeze(0).expand(self.T, -1, -1, -1, -1)
        if x.ndim != 5 or x.shape[2] != self.in_channels:
            raise UserError(
                f"ResNet-19 was made for [T, N, {self.in_channels}, H, W] and got {list(x.shape)}; set model.in_channels to the data's."
            )
        x = self.blocks(self.stem_lif(self.stem(x)))
        return self.fc2(self.fc1_lif(self.fc1(self.pool(x))))

    def channel_groups(self) -> list[ChannelGroup]:
        """Return a group for the inner channels of each block, for each stage (its shortcuts join them), the stem and the hidden layer."""
        groups = []
        carriers, made_by, read_by = ["stem_lif"], ["stem"], []

        def add(carriers: list[str], made_by: list[str], read_by: list[str]) -> None:
            places = [Place(name, 2) for name in carriers]
            groups.append(channel_group(self, carriers[0], carriers=places, made_by=made_by, read_by=read_by))

        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            read_by = [*read_by, f"{name}.conv1"]
            if isinstance(block.shortcut, nn.Identity):
                carriers, made_by = [*carriers, f"{name}.lif2"], [*made_by, f"{name}.conv2"]
            else:
                read_by = [*read_by, f"{name}.shortcut"]
                add(carriers, made_by, read_by)
                carriers, made_by, read_by = [f"{name}.lif2"], [f"{name}.conv2", f"{name}.shortcut"], []
            add([f"{name}.lif1"], [f"{name}.conv1"], [f"{name}.conv2"])
        add(carriers, made_by, [*read_by, "fc1"])
        add(["fc1_lif"], ["fc1"], ["fc2"])
        return groups
