"""A normalising flow for codes: the density of what a model has learned to expect."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.parts.randomness import generator


class RealNvp(nn.Module):
    """Affine couplings between codes and a standard normal (Dinh et al. 2017).

    Each number is standardised first. Each coupling scales and shifts every second number by a
    perceptron of the others; log-scales are held to +-1. All couplings start as the identity.

    Args:
        size: length of a code.
        couplings: number of couplings, which take turns between even and odd numbers.
        hidden: width of the perceptrons.
    """

    def __init__(self, size: int, couplings: int = 6, hidden: int = 64) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size, hidden),
                nn.Tanh(),
                nn.Linear(hidden, hidden),
                nn.Tanh(),
                nn.Linear(hidden, 2 * size),
            )
            for _ in range(couplings)
        )
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Draw seeded weights; the last layer of each perceptron is 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for net in self.nets:
                assert isinstance(net, nn.Sequential)
                for layer in net:
                    if isinstance(layer, nn.Linear):
                        layer.reset_parameters()
                for parameter in net[-1].parameters():
                    nn.init.zeros_(parameter)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return normal numbers of codes, both (B, size), and that map's log-determinant (B,)."""
        u = (code - self.get_buffer("centre")) / self.get_buffer("spread")
        log_det = -self.get_buffer("spread").log().sum().expand(len(u))
        for i in range(len(self.nets)):
            scale, shift = self._coupling(i, u)
            u = u * scale.exp() + shift
            log_det = log_det + scale.sum(1)
        return u, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """Return codes (B, size) of normal numbers (B, size)."""
        for i in reversed(range(len(self.nets))):
            scale, shift = self._coupling(i, u)
            u = (u - shift) * (-scale).exp()
        return u * self.get_buffer("spread") + self.get_buffer("centre")

    def log_prob(self, code: Tensor) -> Tensor:
        """Return log p of codes (B, size), in nats, (B,)."""
        u, log_det = self(code)
        return log_det - 0.5 * (u.square().sum(1) + u.shape[1] * math.log(2 * math.pi))

    def fit(self, codes: Tensor, steps: int = 500, batch_size: int = 256, lr: float = 1e-3) -> None:
        """Fit codes (N, size) by maximum likelihood: Adam on seeded batches.

        Every call starts from the same weights. ValueError for N < 2.
        """
        if len(codes) < 2:
            raise ValueError(f"the flow needs at least 2 slices, got {len(codes)}")
        self.reset()
        with torch.inference_mode(False), torch.enable_grad():
            codes = codes.detach().clone()
            self.centre = codes.mean(0)
            self.spread = codes.std(0).clamp(min=1e-3)

            source = generator(0)
            count = min(batch_size, len(codes))
            optimizer = torch.optim.Adam(self.requires_grad_().parameters(), lr)
            for _ in range(steps):
                chosen = torch.randint(len(codes), (count,), generator=source).to(codes.device)
                optimizer.zero_grad()
                (-self.log_prob(codes[chosen]).mean()).backward()
                optimizer.step()
            optimizer.zero_grad()

    def _coupling(self, number: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift of a coupling, 0 for the numbers that it reads."""
        read = ((torch.arange(u.shape[1], device=u.device) + number) % 2).to(u)
        scale, shift = self.nets[number](u * read).chunk(2, dim=1)
        return scale.tanh() * (1 - read), shift * (1 - read)
