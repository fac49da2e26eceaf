"""The U-Net of the denoising models; a file of its own, since MONAI takes seconds to import."""

from __future__ import annotations

from monai.networks.nets import BasicUNet
from torch import nn


def unet(inputs: int, outputs: int, width: int, start: float | None = None) -> nn.Module:
    """Build MONAI's U-Net of five scales, `width` to 8 * width channels; any height and width.

    It has GroupNorm of 8 groups and SiLU. With `start` its outputs begin near that value.
    ValueError unless `width` is a multiple of 8.
    """
    if width < 8 or width % 8:
        raise ValueError(f"width: expected a multiple of 8, for 8 groups of channels, got {width}")
    features = [width, width, 2 * width, 4 * width, 8 * width, width]
    norm = ("group", {"num_groups": 8})
    net = BasicUNet(2, inputs, outputs, features, act="swish", norm=norm)
    if start is not None and net.final_conv.bias is not None:
        nn.init.constant_(net.final_conv.bias, start)
    return net
