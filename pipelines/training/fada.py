"""Few-shot adversarial domain adaptation of a trained network (FADA, Motiian et al. 2017).

Its classes are healthy slices as they are and with a planted anomaly; see models/parts/pairs.py.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Update
from models.parts.corruptions import change_intensity
from models.parts.pairs import (
    PairCritic,
    confusion_loss,
    critic_loss,
    pair_features,
    pair_groups,
)
from pipelines.cohort.cases import Case, read_cases
from pipelines.config import read_recipe
from pipelines.detect.build import channels_of
from pipelines.detect.run import Run
from pipelines.training.data import Batches, SliceDataset
from pipelines.training.loop import freeze_others, make_optimizer, seed_step
from pipelines.training.relearn import (
    Changed,
    awake,
    descend,
    gently,
    on,
    slices_of,
    trained_part,
)
from preprocessing.scans import InputError

STEPS = 100  # of the critic alone, and then of network and critic in turn
CONFUSION = 0.2  # weight of the pairs, in units of the model's own loss; 0.2 is the paper's
CRITIC_RATE = 1e-3


def fada(run: Run, cases: Sequence[Case], source: Path | None = None) -> Changed:
    """Train the network until its features do not tell the new scanner from the old one.

    A critic learns the groups of pairs. Then it is frozen for every step of the network, which
    learns pairs with a new scan to look like pairs of the old ones, and its own loss on both; and
    the critic learns on (Motiian et al. 2017).
    """
    assert source
    model = copy.deepcopy(run.model)
    part = trained_part(run, model)
    update = coder_update(run, part)
    theirs = learned_cases(run, source)
    streams = [
        endless(run, slices_of(run, found, run.config.augmentation)) for found in (theirs, cases)
    ]
    awake(part)
    pairs = Pairs(part, update, run, next(streams[0]))
    for step in range(2 * STEPS):
        seed_step(run.config, "fada", 0, step)
        old, new = (next(stream) for stream in streams)
        if step >= STEPS:
            pairs.network_step(old, new)
        pairs.critic_step(old, new)
    model.eval()
    details = {"source": source.name, "source_scans": len(theirs), "steps": STEPS}
    return replace(run.detector, model=model), details


class Pairs:
    """A network with an encoder, the critic of its features, and the steps of both."""

    def __init__(self, part: AnomalyModel, update: Update, run: Run, batch: Batch) -> None:
        assert isinstance(part.encoder, nn.Module)
        if len(batch["image"]) < 2:
            raise InputError(
                f"{run.folder}: learned one slice or volume at a time, and fada makes pairs of "
                "them; take another HOW."
            )
        self.part = part
        self.encoder = part.encoder
        self.update = update
        self.config = run.config
        with torch.no_grad():
            width = pair_features(self.encoder, batch["image"]).shape[1]
        torch.manual_seed(run.config.loop.seed)
        self.critic = PairCritic(width).to(run.detector.device)
        self.of_network = make_optimizer(update, gently(run, part.stages[-1]))
        self.of_critic = torch.optim.Adam(self.critic.parameters(), lr=CRITIC_RATE)

    def critic_step(self, old: Batch, new: Batch) -> None:
        """Let the critic learn the groups; the network is frozen."""
        self.critic.requires_grad_(True)
        with torch.no_grad():
            pairs, groups = self._groups(old, new)
        descend(self.of_critic, critic_loss(self.critic, pairs, groups), self.config)

    def network_step(self, old: Batch, new: Batch) -> None:
        """Let the network confuse the critic and keep to its own loss; the critic is frozen."""
        self.critic.requires_grad_(False)
        freeze_others(self.part, self.update)
        own = self.update.loss(old)["loss"] + self.update.loss(new)["loss"]
        confused = confusion_loss(self.critic, *self._groups(old, new))
        loss = own + CONFUSION * own.detach().abs() * confused
        descend(self.of_network, loss, self.config)

    def _groups(self, old: Batch, new: Batch) -> tuple[Tensor, Tensor]:
        """Pairs of the features of old and new slices, and their groups; new ones come again."""
        again = torch.arange(len(old["image"]), device=old["image"].device)
        classes: list[list[Tensor]] = []
        for batch in (old, new):
            places = again % len(batch["image"])
            image, mask, seeds = (batch[key][places] for key in ("image", "mask", "seed"))
            anomalous = change_intensity(image, mask, seeds)[0]
            classes.append([pair_features(self.encoder, shown) for shown in (image, anomalous)])
        return pair_groups(*classes)


def coder_update(run: Run, part: AnomalyModel) -> Update:
    """The one optimiser step of a network whose encoder sees the image; InputError for others."""
    updates = part.updates(part.stages[-1])
    encoder = getattr(part, "encoder", None)
    first = next(iter(encoder.parameters()), None) if isinstance(encoder, nn.Module) else None
    channels = channels_of(run.config, run.recipe)
    sees = first is not None and first.dim() > 1 and first.shape[1] == channels
    if len(updates) != 1 or not sees:
        raise InputError(
            f"{run.folder}: '{run.config.name}' is no network of one optimiser step with an "
            "encoder of the image, as fada needs; take HOW=harmonise, adabn or finetune."
        )
    return updates[0]


def learned_cases(run: Run, source: Path) -> list[Case]:
    """The cases of a cohort that a run has learned from; InputError for none, or another recipe."""
    wanted = set(run.history.get("train_scans", []))
    found = [case for case in read_cases(source) if case.id in wanted and case.label != "abnormal"]
    recipe = read_recipe(source).model_copy(update={"template": run.recipe.template})
    if not found or recipe != run.recipe:
        raise InputError(
            f"{source}: not the scans that {run.folder} learned from; give its DATA as SOURCE."
        )
    return found


def endless(run: Run, dataset: SliceDataset) -> Iterator[Batch]:
    """Batches of a dataset on the run's device, epoch after epoch."""
    batches = Batches(dataset, run.config.loop, shuffle=True, stream=0)
    for epoch in itertools.count():
        for batch in batches.epoch(epoch):
            yield on(batch, run.detector.device)
