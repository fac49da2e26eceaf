"""VQ-VAE whose tokens an autoregressive transformer finds likely or not, and heals (Pinaya et al. 2021; van den Oord et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import BatchNorm2d, coarse_size


class VqvaeTransformer(AnomalyModel):
    """Discrete code of a slice, and the likelihood p(s_i | s_1 .. s_i-1) of each of its tokens in healthy slices.

    stage `vqvae`: mean |x - x'| + `beta` * mean (z - sg(e))^2, with e the entry of the codebook nearest to the encoder's z. The codebook's
    own term, (sg(z) - e)^2, has no gradient step: MONAI's quantizer moves each entry, in every forward pass of training, to a running
    mean of the z that chose it, which minimises that term. Logged: `perplexity`, how many entries are in use.
    stage `transformer`: mean -log p of the tokens, read in `ordering` after a begin token; the VQ-VAE stays as it is.
    `fit_reference` takes the `quantile` of -log p over the tokens of healthy brain. A token above it is healed: replaced, first to last,
    by the likeliest one after those before it (the paper draws several times). x' is then the healed tokens, decoded.
    Score of a slice: mean -log p of the brain's tokens. Map: "likelihood", -log p; "healing", |x - x'| where tokens were healed;
    "product", |x - x'| times -log p; what belongs to tokens is interpolated.

    Args:
        in_channels: image channels.
        channels: channels of the VQ-VAE's blocks; each halves the image.
        residual: residual units per block.
        codes: entries of the codebook.
        embedding: length of an entry.
        beta: weight of the commitment to the codebook.
        decay: share of the running means that a step keeps, in 0..1.
        width: width of the transformer.
        depth: its attention layers.
        heads: their heads; width is a multiple of it.
        ordering: "raster_scan", or "s_curve" with every other row backwards.
        quantile: share of healthy tokens that are not healed, in 0..1.
        map: "product", "likelihood" or "healing".
        image_size: height and width of the slices.
    """

    stages = ("vqvae", "transformer")
    scoring_arguments = ("map", "quantile")
    order: Tensor
    threshold: Tensor

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64),
        residual: int = 1,
        codes: int = 32,
        embedding: int = 16,
        beta: float = 0.25,
        decay: float = 0.5,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        ordering: Literal["raster_scan", "s_curve"] = "raster_scan",
        quantile: float = 0.99,
        map: Literal["product", "likelihood", "healing"] = "product",
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        from monai.networks.nets import VQVAE, DecoderOnlyTransformer
        from monai.utils.ordering import Ordering

        super().__init__()
        self.grid = coarse_size(image_size, channels)
        tokens = math.prod(self.grid)
        self.vqvae = VQVAE(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=in_channels,
            channels=channels,
            num_res_layers=residual,
            num_res_channels=channels,
            downsample_parameters=[(2, 4, 1, 1)] * len(channels),
            upsample_parameters=[(2, 4, 1, 1, 0)] * len(channels),
            num_embeddings=codes,
            embedding_dim=embedding,
            commitment_cost=beta,
            decay=decay,
        )
        self.vqvae.encoder.blocks[-1] = (
            nn.Sequential(  # z as wide as the codebook: else one entry takes all
                nn.Conv2d(channels[-1], embedding, 3, padding=1, bias=False),
                BatchNorm2d(embedding, affine=False),
            )
        )
        self.vqvae.quantizer.quantizer.ema_cluster_size.fill_(
            1
        )  # 0 would fling entries that the first batch leaves out far away
        self.transformer = DecoderOnlyTransformer(  # one token more: the begin token
            codes + 1, tokens, width, depth, heads, use_flash_attention=True
        )
        for block in self.transformer.blocks:
            block.norm_cross_attn = (
                nn.Identity()
            )  # MONAI makes it, and without cross-attention never uses it
        order = torch.as_tensor(Ordering(ordering, 2, (1, *self.grid)).get_sequence_ordering())
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.codes, self.quantile, self.map = codes, quantile, map

    def updates(self, stage: str) -> list[Update]:
        if stage == "transformer":
            return [
                Update("transformer", self.transformer_loss, list(self.transformer.parameters()))
            ]
        learned = [
            *self.vqvae.encoder.parameters(),
            *self.vqvae.decoder.parameters(),
        ]  # the codebook moves without gradients
        return [Update("vqvae", self.vqvae_loss, learned)]

    def vqvae_loss(self, batch: Batch) -> Losses:
        """Reconstruction and commitment; in training mode the codebook follows the encoder."""
        x = batch["image"]
        z = self.vqvae.encode(x)
        with torch.autocast(x.device.type, enabled=False):  # MONAI switches it off for CUDA alone
            nearest, commitment = self.vqvae.quantize(z.float())
        error = (self.vqvae.decode(nearest) - x).abs().mean()
        perplexity = self.vqvae.quantizer.perplexity
        return {
            "loss": error + commitment,
            "absolute_error": error,
            "commitment": commitment,
            "perplexity": perplexity,
        }

    def transformer_loss(self, batch: Batch) -> Losses:
        """Mean -log p of the tokens."""
        with torch.no_grad():
            tokens = self.tokens(batch["image"])
        return {"loss": self.surprise(tokens).mean()}

    def tokens(self, x: Tensor) -> Tensor:
        """Index of the nearest entry for each place of the grid, in order, (B, N); leaves the VQ-VAE in eval mode, where nothing moves."""
        self.vqvae.eval()
        with torch.autocast(x.device.type, enabled=False):
            return self.vqvae.quantizer.quantizer.quantize(self.vqvae.encode(x.float()))[2].flatten(
                1
            )[:, self.order]

    def on_grid(self, values: Tensor) -> Tensor:
        """Values per token (B, N) at their places, (B, h, w): the inverse of the order."""
        return values[:, self.order.argsort()].unflatten(1, self.grid)

    def logits(self, tokens: Tensor) -> Tensor:
        """Unnormalised log p(s_i | s_1 .. s_i-1) of every entry at every place, (B, N, codes)."""
        begun = F.pad(tokens[:, :-1], (1, 0), value=self.codes)
        return self.transformer(begun)[..., : self.codes]

    def surprise(self, tokens: Tensor) -> Tensor:
        """-log p of each token (B, N)."""
        return F.cross_entropy(self.logits(tokens).mT.float(), tokens, reduction="none")

    def heal(self, tokens: Tensor, unlikely: Tensor) -> Tensor:
        """Tokens (B, N) with the unlikely ones (B, N) bool replaced, first to last, by the likeliest after those before them."""
        healed, left = tokens.clone(), unlikely.clone()
        while left.any():
            rows = left.any(1).nonzero()[:, 0]
            first = left[rows].int().argmax(1)
            logits = self.logits(healed[rows, : int(first.max()) + 1])
            healed[rows, first] = logits[
                torch.arange(len(rows), device=tokens.device), first
            ].argmax(1)
            left[rows, first] = False
        return healed

    def decode(self, tokens: Tensor) -> Tensor:
        """Image of tokens in order, (B, C, H, W)."""
        return self.vqvae.decode_samples(self.on_grid(tokens))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """The threshold: a quantile of -log p over tokens that hold brain."""
        values, device = [], self.order.device
        with torch.no_grad():
            for batch in batches:
                brain = self.brain(batch["mask"].to(device)) > 0
                values.append(
                    self.on_grid(self.surprise(self.tokens(batch["image"].to(device))))[brain]
                )
        found = torch.cat(values)
        if len(found):
            self.threshold = found.kthvalue(max(1, math.ceil(self.quantile * len(found))))[0]

    def brain(self, mask: Tensor) -> Tensor:
        """Share of each token's square that is brain, (B, h, w)."""
        return F.adaptive_avg_pool2d(mask.float(), self.grid)[:, 0]

    def reconstruct(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.tokens(x)
            return self.decode(self.heal(tokens, self.surprise(tokens) > self.threshold))

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Mean -log p of the tokens, weighted by the share of brain in them; 0 for an empty mask."""
        with torch.autocast(x.device.type, enabled=False):
            brain = self.brain(mask).flatten(1)
            surprise = self.on_grid(self.surprise(self.tokens(x))).flatten(1)
            return (surprise * brain).sum(1) / brain.sum(1).clamp(min=1e-6)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a rounded code is another token
            tokens = self.tokens(x)
            surprise = self.surprise(tokens)
            unlikely = surprise > self.threshold
            weight = unlikely.float() if self.map == "healing" else surprise
            weight = F.interpolate(
                self.on_grid(weight)[:, None], size=x.shape[-2:], mode="bilinear"
            )
            if self.map != "likelihood":
                weight = weight * (x.float() - self.decode(self.heal(tokens, unlikely))).abs().mean(
                    1, keepdim=True
                )
            return weight * mask
