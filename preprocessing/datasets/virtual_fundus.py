"""Virtual pictures of the eye's fundus, for `make preprocess MODALITY=fundus` without IN.

An eye is drawn from simple shapes: a disc of red and green on black, the head of the optic nerve,
a macula, and vessels that branch from the nerve. Half of the bad pictures show bleedings (dark),
the others exudates (bright). It is no measure of how well anything works on patients.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from preprocessing.files import atomic, plain, write_json

COHORT_VERSION = 1  # raise when the generator changes
SHAPE = (272, 300)  # rows, columns
RADIUS = 125.0  # pixels, of the eye
KINDS = {"bleeding": (4.0, 9.0), "exudate": (3.0, 7.0)}  # radius in pixels
COLOURS = {  # red, green, blue
    "eye": (0.66, 0.34, 0.10),
    "nerve": (0.95, 0.74, 0.45),
    "vessel": (0.46, 0.14, 0.07),
    "bleeding": (0.34, 0.05, 0.04),
    "exudate": (0.96, 0.84, 0.40),
}


@dataclass
class Mark:
    """A bleeding or an exudate: a ball about a pixel."""

    kind: str
    row: float
    column: float
    radius: float


@dataclass
class Eye:
    """All that was drawn for one picture. side: of the nerve, -1 left. light: of the whole eye."""

    name: str
    side: int
    light: float
    marks: list[Mark] = field(default_factory=list)


def draw(seed: int, index: int, kind: str = "") -> Eye:
    """Draw an eye's parameters; `kind` of `KINDS` makes it a bad one."""
    rng = np.random.default_rng([seed, index])
    side = int(rng.choice((-1, 1)))
    eye = Eye(f"eye-{index:03d}", side, float(rng.uniform(0.85, 1.05)))
    middle = (np.array(SHAPE) - 1) / 2
    for _ in range(int(rng.integers(4, 9)) if kind else 0):
        angle = rng.uniform(0, 2 * np.pi)
        away = 0.8 * RADIUS * np.sqrt(rng.uniform())
        row, column = middle + away * np.array([np.sin(angle), np.cos(angle)])
        eye.marks.append(Mark(kind, float(row), float(column), float(rng.uniform(*KINDS[kind]))))
    return eye


def marked(eye: Eye) -> np.ndarray:
    """Where the marks of an eye are, (rows, columns), bool."""
    rows, columns = np.indices(SHAPE)
    shown = np.zeros(SHAPE, bool)
    for mark in eye.marks:
        shown |= np.hypot(rows - mark.row, columns - mark.column) <= mark.radius
    return shown


def render(eye: Eye, seed: int) -> np.ndarray:
    """The picture (rows, columns, RGB), uint8."""
    rng = np.random.default_rng([seed, int(eye.name[4:]), 1])
    rows, columns = np.indices(SHAPE)
    y = rows - (SHAPE[0] - 1) / 2
    x = columns - (SHAPE[1] - 1) / 2
    inside = np.hypot(x, y) < RADIUS
    picture = np.ones((*SHAPE, 1)) * COLOURS["eye"]

    nerve = np.array([rng.uniform(-8, 8), eye.side * rng.uniform(48, 62)])
    macula = np.hypot(x + eye.side * 25, y - nerve[0])
    picture *= (1 - 0.35 * np.exp(-((macula / 18) ** 2)))[..., None]
    _paint(picture, np.hypot(x - nerve[1], y - nerve[0]) < 15, "nerve")
    _paint(picture, _vessels(nerve, eye.side, rng), "vessel")
    for kind in KINDS:
        of_kind = [mark for mark in eye.marks if mark.kind == kind]
        _paint(picture, marked(Eye(eye.name, eye.side, eye.light, of_kind)), kind)

    picture = ndimage.gaussian_filter(picture, (0.8, 0.8, 0))
    tilt = rng.uniform(-0.1, 0.1, 2)  # light falls in from one side
    shade = 1 - 0.25 * (np.hypot(x, y) / RADIUS) ** 2 + (tilt[0] * x + tilt[1] * y) / RADIUS
    picture *= eye.light * shade[..., None]
    picture += 0.012 * rng.normal(size=picture.shape)
    picture[~inside] = 0
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _paint(picture: np.ndarray, where: np.ndarray, name: str) -> None:
    """Paint a shape in its colour, in place."""
    picture[where] = COLOURS[name]


def _vessels(nerve: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Arcs from the nerve over and under the macula, with branches, (rows, columns), bool."""
    drawn = np.zeros(SHAPE, bool)
    rows, columns = np.indices(SHAPE)
    # (row, column, direction, half width, steps left): directions turn about the macula
    growing = [(*nerve, np.pi / 2 * up, 2.2, 110) for up in (-1, -1, 1, 1)]
    growing += [(*nerve, np.pi / 2 * up, 1.6, 50) for up in (-1, 1)]
    while growing:
        row, column, direction, width, left = growing.pop()
        bend = side * np.sign(np.sin(direction)) * rng.uniform(0.01, 0.025)
        for step in range(left):
            row += 2 * np.sin(direction)
            column += 2 * np.cos(direction)
            direction += bend + rng.normal(0, 0.05)
            r = row + (SHAPE[0] - 1) / 2
            c = column + (SHAPE[1] - 1) / 2
            near = (slice(max(int(r) - 5, 0), int(r) + 6), slice(max(int(c) - 5, 0), int(c) + 6))
            if min(r, c) < -5:
                break
            drawn[near] |= np.hypot(rows[near] - r, columns[near] - c) <= width
            if width > 1 and rng.uniform() < 0.04:
                turn = rng.choice((-1, 1)) * rng.uniform(0.4, 0.9)
                growing.append((row, column, direction + turn, 0.7 * width, (left - step) // 2))
    return drawn


def make_cohort(out: Path, *, seed: int = 0, n_good: int = 90, n_bad: int = 60) -> Path:
    """Write `good/*.png`, `bad/*.png` and `cohort.json` (all that was drawn); returns `out`.

    A folder that holds a cohort of these settings is left alone.
    """
    wanted = {"version": COHORT_VERSION, "seed": seed, "n_good": n_good, "n_bad": n_bad}
    record = out / "cohort.json"
    if record.is_file() and json.loads(record.read_text())["settings"] == wanted:
        return out
    eyes = [draw(seed, 1 + i) for i in range(n_good)]
    names = list(KINDS)
    eyes += [draw(seed, 501 + i, names[i % len(names)]) for i in range(n_bad)]
    for eye in tqdm(eyes, desc="virtual cohort", unit="picture"):
        path = out / ("bad" if eye.marks else "good") / f"{eye.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            Image.fromarray(render(eye, seed)).save(temporary, format="png")
    write_json(record, {"settings": wanted, "eyes": plain([asdict(eye) for eye in eyes])})
    return out
