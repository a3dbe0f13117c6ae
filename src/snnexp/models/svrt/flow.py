"""Optical flow from coarse to fine (SpyNet: Ranjan and Black, CVPR 2017), warping and sampling along a flow."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from snnexp.errors import UserError
from snnexp.fp32 import at_least_fp32
from snnexp.untrusted.torch_files import load_plain

LEVELS = 6
STEP = 2 ** (LEVELS - 1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SpyNet(nn.Module):
    """Flow from each reference image to its neighbour at `scales` sizes; six levels, each of which corrects the flow of the level before.

    The finest `left_out` levels are omitted; the flow there is that of the last level, enlarged. A level has five 7x7 convolutions, of
    `width`, 2 `width`, `width`, `width` / 2 and 2 channels: 1,440,300 parameters at width 32. Without `weights` (a file), the last
    convolution of each level starts at 0, and so does the flow.
    Raises: UserError if the file does not hold weights of this network.
    """

    def __init__(self, width: int = 32, scales: int = 4, left_out: int = 0, weights: str | Path | None = None) -> None:
        super().__init__()
        self.scales = scales
        self.basic_module = nn.ModuleList(FlowLevel(width) for _ in range(LEVELS - left_out))
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        if weights is not None:
            load_flow_weights(self, Path(weights))

    def forward(self, reference: Tensor, neighbour: Tensor) -> list[Tensor]:
        """Return flows [N, 2, H / 2^i, W / 2^i] (x, y in pixels of their scale), the finest first; images [N, 1 or 3, H, W], 0 to 1."""
        h, w = reference.shape[-2:]
        full = math.ceil(h / STEP) * STEP, math.ceil(w / STEP) * STEP
        pyramids = [[self.normalise(image, full)] for image in (reference, neighbour)]
        for pyramid in pyramids:
            for _ in range(LEVELS - 1):
                pyramid.insert(0, F.avg_pool2d(pyramid[0], 2))
        flow, flows = None, []
        for level, (module, first, second) in enumerate(zip(self.basic_module, *pyramids, strict=False)):
            size = first.shape[-2:]
            if flow is None:
                coarser = at_least_fp32(first.new_zeros(len(first), 2, *size))
            else:
                coarser = 2.0 * F.interpolate(flow, size, mode="bilinear", align_corners=True)
            flow = coarser + at_least_fp32(module(torch.cat([first, warp(second, coarser, padding="border"), coarser], 1)))
            scale = LEVELS - 1 - level
            if scale < self.scales:
                flows.insert(0, resize_flow(flow, (h >> scale, w >> scale)))
        left_out = LEVELS - len(self.basic_module)
        return [resize_flow(flow, (h >> scale, w >> scale)) for scale in range(left_out)] + flows

    def normalise(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the image as SpyNet was trained: sides that six levels can halve, three channels, ImageNet's mean and deviation."""
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        return (image - self.mean) / self.std  # a grey image becomes three equal channels


class FlowLevel(nn.Module):
    """The correction [N, 2, H, W] of a flow, computed from reference, warped neighbour and flow [N, 8, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [8, width, 2 * width, width, width // 2, 2]
        layers: list[nn.Module] = []
        for i in range(5):
            layers += [nn.Conv2d(channels[i], channels[i + 1], 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])
        nn.init.zeros_(self.basic_module[-1].weight)
        nn.init.zeros_(self.basic_module[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


def load_flow_weights(net: SpyNet, path: Path) -> None:
    """Load weights as published for video restoration (`basic_module.0.basic_module.0.weight` ..., also below `params`).

    Raises: UserError if the file is missing or does not hold such weights.
    """
    try:
        saved = load_plain(path)
        saved = saved.get("params", saved)
        weights = {name: saved[name] for name in net.state_dict()}
        if odd := next((name for name, value in weights.items() if not value.is_floating_point() or not value.isfinite().all()), None):
            raise ValueError(f"{odd} holds other than finite real numbers")
        net.load_state_dict(weights)
    except FileNotFoundError as error:
        raise UserError(f"model.flow_weights={path}: no such file.") from error
    except Exception as error:  # a file may be wrong in any way
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(f"model.flow_weights={path}: not the weights of SpyNet of this width ({reason}).") from error


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a flow [N, 2, H, W] at another size, with its lengths in pixels of that size."""
    h, w = flow.shape[-2:]
    if (h, w) == size:
        return flow
    return F.interpolate(flow, size, mode="bilinear", align_corners=False) * per_axis(flow, size[1] / w, size[0] / h)


def warp(x: Tensor, flow: Tensor, padding: str = "zeros") -> Tensor:
    """Return images [N, C, H, W] sampled at each pixel plus its flow [N, 2, H, W] (x, y), bilinear, in fp32 or fp64."""
    with torch.autocast(x.device.type, enabled=False):
        return F.grid_sample(at_least_fp32(x), sampling_grid(flow), mode="bilinear", padding_mode=padding, align_corners=True)


def four_nearest(x: Tensor, flow: Tensor) -> Tensor:
    """Return the four pixels around the point to which the flow leads, as channels [N, 4 C, H, W]; 0 outside the image.

    Their order is that of the published weights: upper left, lower left, upper right, lower right.
    """
    n, c, h, w = x.shape
    flow = at_least_fp32(flow).nan_to_num()  # a diverged network should show in its loss, not fail on an index
    rows, columns = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
    at_x, at_y = columns + flow[:, 0], rows + flow[:, 1]
    corners = []
    for column in (at_x.floor(), at_x.ceil()):
        for row in (at_y.floor(), at_y.ceil()):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            place = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long().view(n, 1, -1).expand(-1, c, -1)
            corners.append(x.flatten(2).gather(2, place).view(n, c, h, w) * inside[:, None])
    return torch.cat(corners, 1)


def sampling_grid(flow: Tensor) -> Tensor:
    """Return the points to which a flow [N, 2, H, W] leads, in the coordinates of grid_sample, [N, H, W, 2]."""
    h, w = flow.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h, device=flow.device), torch.arange(w, device=flow.device), indexing="ij")
    at = torch.stack([columns, rows]) + at_least_fp32(flow)
    return (at * per_axis(at, 2 / max(w - 1, 1), 2 / max(h - 1, 1)) - 1).movedim(1, -1)


def per_axis(like: Tensor, x: float, y: float) -> Tensor | float:
    """Return the factors of both axes, [2, 1, 1] of the dtype of `like` or one number for both; nothing is copied from the host."""
    return x if x == y else torch.cat([like.new_full((1, 1, 1), factor) for factor in (x, y)])


class GuidedSampling(nn.Module):
    """Deformable convolution whose offsets are a flow plus a learned residue of at most `reach` pixels (DCNv2: Zhu et al., CVPR 2019).

    It aligns the features of a frame with those of the frame beside it. Three 3x3 convolutions see both frames and the flow; a fourth gives
    the offsets and weights of the 9 x `groups` samples of a pixel, which start at 0 and 1/2.
    """

    def __init__(self, width: int, groups: int, reach: float) -> None:
        super().__init__()
        self.groups, self.reach = groups, reach
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        bound = 1 / math.sqrt(9 * width)
        nn.init.uniform_(self.weight, -bound, bound)
        channels = [2 * width + 2, width, width, width, 27 * groups]
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(channels[i], channels[i + 1], 3, padding=1), nn.LeakyReLU(0.1)]
        self.conv_offset = nn.Sequential(*layers[:-1])
        nn.init.zeros_(self.conv_offset[-1].weight)
        nn.init.zeros_(self.conv_offset[-1].bias)

    def forward(self, x: Tensor, beside: Tensor, flow: Tensor) -> Tensor:
        """Return features x [N, C, H, W] aligned with `beside`, along the flow [N, 2, H, W] (x, y) from `beside` to x; fp32 or fp64."""
        sampling = at_least_fp32(self.conv_offset(torch.cat([warp(x, flow).to(x.dtype), beside, flow.to(x.dtype)], 1)))
        offsets, weights = sampling.split([18 * self.groups, 9 * self.groups], 1)
        offsets = self.reach * offsets.tanh() + at_least_fp32(flow).flip(1).repeat(1, 9 * self.groups, 1, 1)  # rows first
        # At a place that is NaN the sampling would read outside of memory. The weights, from the same convolution, pass the NaN on.
        offsets.detach().nan_to_num_()  # in place: nothing more is kept for the backward
        with torch.autocast(x.device.type, enabled=False):
            x, weight, bias = (at_least_fp32(tensor) for tensor in (x, self.weight, self.bias))
            return deform_conv2d(x, offsets, weight, bias, padding=1, mask=weights.sigmoid())
