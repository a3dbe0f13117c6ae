"""Layers that several models share."""

from spikingjelly.activation_based import layer
from torch import nn


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int) -> layer.SeqToANNContainer:
    """Return a convolution without bias, followed by batch norm over T and N: [T, N, C, H, W] -> [T, N, C', H', W']."""
    return layer.SeqToANNContainer(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )
