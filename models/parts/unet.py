"""The U-Net of the denoising models; a file of its own, since MONAI takes seconds to import."""

from __future__ import annotations

from monai.networks.nets import BasicUNet
from torch import nn


def unet(inputs: int, outputs: int, width: int) -> nn.Module:
    """Build MONAI's U-Net of five scales, `width` to 8 * width channels; any height and width.

    It has GroupNorm of 8 groups and SiLU. ValueError unless `width` is a multiple of 8.
    """
    if width < 8 or width % 8:
        raise ValueError(f"width: expected a multiple of 8, for 8 groups of channels, got {width}")
    features = [width, width, 2 * width, 4 * width, 8 * width, width]
    return BasicUNet(2, inputs, outputs, features, act="swish", norm=("group", {"num_groups": 8}))
