"""VQ-VAE whose tokens an autoregressive transformer finds likely or not, and heals.

Pinaya et al. 2021; van den Oord et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils.ordering import Ordering
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import BatchNorm2d, coarse_size


class VqvaeTransformer(AnomalyModel):
    """Discrete code of a slice, and the likelihood of each of its tokens in healthy slices.

    That is p(s_i | s_1 .. s_i-1).

    stage `vqvae`: mean |x - x'| + `beta` * mean (z - sg(e))^2, with e the entry of the codebook
    nearest to the encoder's z. The codebook's own term, (sg(z) - e)^2, has no gradient step:
    MONAI's quantizer moves each entry, in every forward pass of training, to a running mean of the
    z that chose it. That minimises the term. Logged: `perplexity`, how many entries are in use.

    stage `transformer`: mean -log p of the tokens, read in `ordering` after a begin token. The
    VQ-VAE stays as it is.

    `fit_reference` takes the `quantile` of -log p over the tokens of healthy brain. A token above
    it is healed: replaced, first to last, by the likeliest one after those before it. (The paper
    draws several times.) x' is then the healed tokens, decoded.

    Score of a slice: mean -log p of the brain's tokens. Map: "likelihood", -log p; "healing",
    |x - x'| where tokens were healed; "product", |x - x'| times -log p. What belongs to tokens is
    interpolated.

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
        super().__init__()
        self.grid = coarse_size(image_size, channels)
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
        # z must be as wide as the codebook: else one entry takes all.
        self.vqvae.encoder.blocks[-1] = nn.Sequential(
            nn.Conv2d(channels[-1], embedding, 3, padding=1, bias=False),
            BatchNorm2d(embedding, affine=False),
        )
        # 0 would fling entries that the first batch leaves out far away.
        self.vqvae.quantizer.quantizer.ema_cluster_size.fill_(1)

        # One token more than codes: the begin token.
        self.transformer = DecoderOnlyTransformer(
            codes + 1, math.prod(self.grid), width, depth, heads, use_flash_attention=True
        )
        # MONAI builds this norm, and without cross-attention never uses it.
        for block in self.transformer.blocks:
            block.norm_cross_attn = nn.Identity()

        order = torch.as_tensor(Ordering(ordering, 2, (1, *self.grid)).get_sequence_ordering())
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.codes = codes
        self.quantile = quantile
        self.map = map

    def updates(self, stage: str) -> list[Update]:
        if stage == "transformer":
            moved = list(self.transformer.parameters())
            return [Update("transformer", self.transformer_loss, moved)]
        # The codebook moves without gradients.
        moved = [*self.vqvae.encoder.parameters(), *self.vqvae.decoder.parameters()]
        return [Update("vqvae", self.vqvae_loss, moved)]

    def vqvae_loss(self, batch: Batch) -> Losses:
        """Return reconstruction and commitment; in training mode the codebook follows z."""
        x = batch["image"]
        z = self.vqvae.encode(x)
        with torch.autocast(x.device.type, enabled=False):  # MONAI switches it off for CUDA alone
            nearest, commitment = self.vqvae.quantize(z.float())
        error = (self.vqvae.decode(nearest) - x).abs().mean()
        return {
            "loss": error + commitment,
            "absolute_error": error,
            "commitment": commitment,
            "perplexity": self.vqvae.quantizer.perplexity,
        }

    def transformer_loss(self, batch: Batch) -> Losses:
        """Return the mean -log p of the tokens."""
        with torch.no_grad():
            tokens = self.tokens(batch["image"])
        return {"loss": self.surprise(tokens).mean()}

    def tokens(self, x: Tensor) -> Tensor:
        """Return the index of the nearest entry for each place of the grid, in order, (B, N).

        Leaves the VQ-VAE in evaluation mode, where nothing moves.
        """
        self.vqvae.eval()
        with torch.autocast(x.device.type, enabled=False):
            z = self.vqvae.encode(x.float())
            return self.vqvae.quantizer.quantizer.quantize(z)[2].flatten(1)[:, self.order]

    def on_grid(self, values: Tensor) -> Tensor:
        """Return values per token (B, N) at their places, (B, h, w): the inverse of the order."""
        return values[:, self.order.argsort()].unflatten(1, self.grid)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return unnormalised log p(s_i | s_1 .. s_i-1) of every entry at every place.

        (B, N, codes).
        """
        shifted = F.pad(tokens[:, :-1], (1, 0), value=self.codes)
        return self.transformer(shifted)[..., : self.codes]

    def surprise(self, tokens: Tensor) -> Tensor:
        """Return -log p of each token (B, N)."""
        return F.cross_entropy(self.logits(tokens).mT.float(), tokens, reduction="none")

    def heal(self, tokens: Tensor, unlikely: Tensor) -> Tensor:
        """Replace the unlikely tokens, first to last, by the likeliest after those before them.

        Args: tokens (B, N); unlikely (B, N) bool. Returns (B, N).
        """
        healed = tokens.clone()
        left = unlikely.clone()
        while left.any():
            indices = left.any(1).nonzero()[:, 0]
            first = left[indices].int().argmax(1)
            logits = self.logits(healed[indices, : int(first.max()) + 1])
            every = torch.arange(len(indices), device=tokens.device)
            healed[indices, first] = logits[every, first].argmax(1)
            left[indices, first] = False
        return healed

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the image of tokens in order, (B, C, H, W)."""
        return self.vqvae.decode_samples(self.on_grid(tokens))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take the threshold: a quantile of -log p over tokens that hold brain."""
        values = []
        device = self.order.device
        with torch.no_grad():
            for batch in batches:
                brain = self.brain(batch["mask"].to(device)) > 0
                surprise = self.surprise(self.tokens(batch["image"].to(device)))
                values.append(self.on_grid(surprise)[brain])
        found = torch.cat(values)
        if len(found):
            self.threshold = found.kthvalue(max(1, math.ceil(self.quantile * len(found))))[0]

    def brain(self, mask: Tensor) -> Tensor:
        """Return the share of each token's square that is brain, (B, h, w)."""
        return F.adaptive_avg_pool2d(mask.float(), self.grid)[:, 0]

    def reconstruct(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.tokens(x)
            return self.decode(self.heal(tokens, self.surprise(tokens) > self.threshold))

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the mean -log p of the tokens, weighted by their share of brain.

        0 for an empty mask.
        """
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
            grid = self.on_grid(weight)[:, None]
            fine = F.interpolate(grid, size=x.shape[-2:], mode="bilinear")
            if self.map != "likelihood":
                healed = self.decode(self.heal(tokens, unlikely))
                fine = fine * (x.float() - healed).abs().mean(1, keepdim=True)
            return fine * mask
