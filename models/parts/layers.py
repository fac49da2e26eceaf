"""Networks' blocks that models share: batch norm, encoders, decoders, dense codes and critics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Size = TypeVar("Size", bound=tuple[int, ...])


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batch of all processes, on any device.

    With one process it is torch's own. With several, the batch statistics are summed over them,
    so that two processes learn what one would. torch's SyncBatchNorm needs a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return super().forward(x)

        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        n, mean, var = _statistics_of_all(wide)
        self._follow(n, mean, var)

        scale = torch.rsqrt(var + self.eps) * (self.weight if self.affine else 1)
        shift = (self.bias if self.affine else 0) - mean * scale
        along = (-1, *[1] * (x.dim() - 2))
        return (wide * scale.view(along) + shift.view(along)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, n: Tensor, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a batch of n values per channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var * n / (n - 1), momentum)


def _statistics_of_all(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and variance per channel of x (B, C, ...) over all processes."""
    # Imported here: a torch built without `distributed` lacks it, and one process needs none.
    from torch.distributed.nn.functional import all_reduce

    channels = x.shape[1]
    others = [0, *range(2, x.dim())]
    count = x.new_full((1,), x.numel() / channels)
    total = all_reduce(torch.cat([count, x.sum(others), x.square().sum(others)]))

    n = total[0]
    mean = total[1 : 1 + channels] / n
    square = total[1 + channels :] / n
    return n, mean, (square - mean.square()).clamp(min=0)


class BatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """Synchronised batch normalisation of slices (B, C, H, W)."""


class BatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """Synchronised batch normalisation of volumes (B, C, X, Y, Z)."""


Layer = Callable[..., nn.Module]
# By the number of spatial dimensions.
CONVOLUTION: dict[int, Layer] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Layer] = {2: BatchNorm2d, 3: BatchNorm3d}
DROPOUT: dict[int, Layer] = {2: nn.Dropout2d, 3: nn.Dropout3d}


def down(inputs: int, outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """Build a block that halves each of `dims` sides.

    A convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout.
    """
    return _block(CONVOLUTION[dims](inputs, outputs, 4, 2, 1, bias=False), outputs, dropout, dims)


def up(inputs: int, outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """Build a block that doubles each of `dims` sides.

    A transposed convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel
    dropout.
    """
    return _block(TRANSPOSED[dims](inputs, outputs, 4, 2, 1, bias=False), outputs, dropout, dims)


def _block(convolution: nn.Module, outputs: int, dropout: float, dims: int) -> nn.Sequential:
    layers = [convolution, NORM[dims](outputs), nn.LeakyReLU(0.1)]
    if dropout:
        layers.append(DROPOUT[dims](dropout))
    return nn.Sequential(*layers)


def encoder(
    inputs: int, channels: Sequence[int], dropout: float = 0.0, dims: int = 2
) -> nn.Sequential:
    """Build one `down` block per entry of `channels`."""
    pairs = itertools.pairwise([inputs, *channels])
    return nn.Sequential(*[down(a, b, dropout, dims) for a, b in pairs])


def decoder(
    inputs: int, channels: Sequence[int], outputs: int, dropout: float = 0.0, dims: int = 2
) -> nn.Sequential:
    """Build the mirror of `encoder`: `up` blocks back through `channels` to `outputs` channels.

    The last block is one linear layer.
    """
    pairs = itertools.pairwise([inputs, *reversed(channels[:-1])])
    blocks = [up(a, b, dropout, dims) for a, b in pairs]
    return nn.Sequential(*blocks, TRANSPOSED[dims](channels[0], outputs, 4, 2, 1))


def coarse_size(image_size: Size, channels: Sequence[int], dims: int = 2) -> Size:
    """Return the `dims` sides of what an `encoder` leaves.

    ValueError for another number of sides, or where halvings do not come out even.
    """
    if len(image_size) != dims:
        raise ValueError(
            f"image_size {tuple(image_size)} has {len(image_size)} numbers, expected {dims}"
        )
    factor = 2 ** len(channels)
    if any(side % factor for side in image_size):
        raise ValueError(
            f"image_size {tuple(image_size)} must be divisible by {factor}, "
            f"for {len(channels)} entries of channels"
        )
    return cast(Size, tuple(side // factor for side in image_size))


def dense_code(channels: int, latent: int, size: tuple[int, ...]) -> nn.Sequential:
    """Build layers that take a feature map (B, channels, *size) through `latent` numbers and back.

    The result has the shape of the feature map.
    """
    shape = (channels, *size)
    flat = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(flat, latent), nn.Linear(latent, flat), nn.Unflatten(1, shape)
    )


def dense_encoder(
    inputs: int,
    channels: Sequence[int],
    numbers: int,
    image_size: tuple[int, ...],
    dims: int = 2,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build an encoder from images to `numbers` numbers, (B, numbers, 1, 1).

    One convolution covers what the blocks leave of the image.
    """
    size = coarse_size(image_size, channels, dims)
    blocks = encoder(inputs, channels, dropout, dims)
    return nn.Sequential(*blocks, CONVOLUTION[dims](channels[-1], numbers, size))


def dense_decoder(
    latent: int,
    channels: Sequence[int],
    outputs: int,
    image_size: tuple[int, ...],
    dims: int = 2,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build the mirror of `dense_encoder`: `latent` numbers to images of `outputs` channels."""
    size = coarse_size(image_size, channels, dims)
    first = TRANSPOSED[dims](latent, channels[-1], size)
    return nn.Sequential(first, *decoder(channels[-1], channels, outputs, dropout, dims))


def latent_critic(latent: int, width: int = 128) -> nn.Sequential:
    """Build a perceptron (B, latent, 1, 1) -> (B, 1) that judges codes.

    The last layer has no bias: a constant would cancel in a Wasserstein loss.
    """
    layers = [
        nn.Flatten(),
        nn.Linear(latent, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
    ]
    return nn.Sequential(*layers, nn.Linear(width, 1, bias=False))


def image_critic(
    inputs: int, channels: Sequence[int], image_size: tuple[int, int]
) -> tuple[nn.Sequential, nn.Conv2d]:
    """Build convolutions that judge images, in two parts.

    The first gives features (B, C, H, W) -> (B, channels[-1], h, w), the second one value of
    these, (B, 1, 1, 1). There is no batch norm, since the gradient penalty is per slice. The last
    layer has no bias, as in `latent_critic`.
    """
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise([inputs, *channels]):
        layers += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]
    size = coarse_size(image_size, channels)
    return nn.Sequential(*layers), nn.Conv2d(channels[-1], 1, size, bias=False)
