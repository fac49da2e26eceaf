"""A run's anomaly map as TorchScript and ONNX, each checked against the model on made-up slices."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.base import AnomalyModel
from pipelines.detect.build import channels_of
from pipelines.detect.run import Run
from preprocessing.scans import InputError

TOLERANCE = 1e-4  # of the highest map value, or 1 where that is lower
OPSET = 17
INPUTS = ("image", "brain", "place")

Sample = tuple[Tensor, Tensor, Tensor]
"""Image (1, C, ...), brain (1, 1, ...) and place (1,) of one slice or volume."""


class _Map(nn.Module):
    """A model's anomaly map as its forward pass."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, brain: Tensor, place: Tensor) -> Tensor:
        assert isinstance(self.model, AnomalyModel)
        return self.model.anomaly_map(image, brain, place).float()


def write_torchscript(run: Run, path: Path) -> None:
    """Trace the anomaly map with one sample and write it; InputError for a model that cannot be.

    A trace keeps what the model did with that sample. So the map of other samples, another size of
    the brain and another place, must be that of the model: chance and loops of another length do
    not pass.
    """
    first, *others = samples(run)
    try:
        with _quiet(), torch.no_grad():
            traced = torch.jit.trace(_Map(run.model).eval(), first, check_trace=False)
        traced.save(str(path))
        loaded = torch.jit.load(str(path), map_location="cpu")
        apart = difference(run, lambda sample: loaded(*sample), [first, *others])
    except Exception as error:  # torch raises many kinds
        raise InputError(_refusal(run, _short(error))) from None
    if not apart <= TOLERANCE:
        raise InputError(_refusal(run, f"the maps of the two differ by {apart:.2g} of the highest"))


def write_onnx(run: Run, path: Path) -> str:
    """Write the anomaly map as ONNX; gives why there is none, or nothing.

    onnxruntime must give the maps of the model.
    """
    import onnxruntime

    first, *others = samples(run)
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                _Map(run.model).eval(),
                first,
                str(path),
                input_names=list(INPUTS),
                output_names=["pred"],
                opset_version=OPSET,
                dynamo=False,  # the other exporter needs one more package
            )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def through(sample: Sample) -> Tensor:
            values = dict(zip(INPUTS, (part.numpy() for part in sample), strict=True))
            return torch.from_numpy(session.run(None, {name: values[name] for name in names})[0])

        apart = difference(run, through, [first, *others])
        why = "" if apart <= TOLERANCE else f"its maps differ by {apart:.2g} of the highest"
    except Exception as error:  # torch and onnxruntime raise many kinds
        why = _short(error)
    if why:
        path.unlink(missing_ok=True)
    return why


def difference(run: Run, exported: Callable[[Sample], Tensor], cases: Sequence[Sample]) -> float:
    """By how much the maps of samples differ at most, as a share of the highest value (or of 1)."""
    apart: list[float] = []
    with torch.inference_mode():
        for sample in cases:
            expected = run.model.anomaly_map(*sample).float()
            scale = max(1.0, float(expected.max()))
            apart.append(float((exported(sample) - expected).abs().max()) / scale)
    return float(np.max(apart))  # NaN stays NaN


def samples(run: Run) -> list[Sample]:
    """Made-up slices or volumes: noise in a round brain, of several sizes and places."""
    size = run.config.image_size
    generator = torch.Generator().manual_seed(0)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    away = torch.stack(axes).square().sum(0)
    channels = channels_of(run.config, run.recipe)
    made: list[Sample] = []
    for radius, place in ((0.7, 60), (0.5, 100), (0.9, 20)):
        brain = (away < radius**2).float()[None, None]
        image = torch.rand((1, channels, *size), generator=generator) * brain
        made.append((image, brain, torch.tensor([place if len(size) == 2 else 0])))
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that `samples` answer, and the graph that a failed export prints."""
    sys.stdout.flush()
    own = os.dup(1)
    with open(os.devnull, "w") as nothing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nothing.fileno(), 1)  # torch prints it past sys.stdout
        try:
            yield
        finally:
            os.dup2(own, 1)
            os.close(own)


def _refusal(run: Run, why: str) -> str:
    return f"{run.folder}: model '{run.config.name}' cannot be exported as TorchScript: {why}."


def _short(error: Exception) -> str:
    """The line of an error that says most: the last one of the TorchScript interpreter."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = (lines or [type(error).__name__])[-1 if "TorchScript interpreter" in str(error) else 0]
    return line.rstrip(".:")[:200]
