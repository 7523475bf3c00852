"""Scenes: real photographs with real handwritten digits on small cards, and questions.

Glyphs are scikit-learn's `load_digits` (UCI, NIST preprocessing), backgrounds are
photographs that ship with scikit-image and scikit-learn. Both are split: what the
held-out scenes show was in no training scene. Everything follows from a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images

from training.tiny.variety import clutter, lean, recolour, warp

Generator = np.random.Generator

TRAINING_PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "retina", "flower.jpg"),
)
HELD_OUT_PHOTOGRAPHS = ("coffee", "rocket", "china.jpg")
HELD_OUT_GLYPHS = 360
"""Of 1,797, the last ones."""

SIZES = ((224, 224), (336, 112), (112, 336), (224, 112), (112, 224))
"""Width and height of the canvases; scenes are these and shapes near them."""

CARD_SIDES = (18, 32)
"""Pixels; about half as many in the thumbnail of a 2 x 2 canvas: from hard to easy."""

MOST_CARDS = 4


@dataclass(frozen=True)
class Card:
    """A digit on a card; left, top and side in pixels of the scene."""

    digit: int
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Question:
    """One of the three kinds of task, as text."""

    task: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it; cards from top to bottom."""

    image: Image.Image
    cards: tuple[Card, ...]


@cache
def glyphs(held_out: bool) -> tuple[list[Image.Image], list[int]]:
    """8 x 8 grey images, ink dark, and their digits."""
    digits = load_digits()
    part = slice(-HELD_OUT_GLYPHS, None) if held_out else slice(0, -HELD_OUT_GLYPHS)
    pixels = (255 - digits.images[part] * (255 / 16)).round().astype(np.uint8)
    return [Image.fromarray(image) for image in pixels], digits.target[part].tolist()


@cache
def photographs(held_out: bool) -> list[Image.Image]:
    """RGB."""
    samples = load_sample_images()
    named = {
        name.rpartition("/")[2]: image
        for name, image in zip(samples.filenames, samples.images, strict=True)
    }
    return [
        Image.fromarray(
            named[name] if name in named else getattr(skimage.data, name)()
        ).convert("RGB")
        for name in (HELD_OUT_PHOTOGRAPHS if held_out else TRAINING_PHOTOGRAPHS)
    ]


def make_scene(rng: Generator, held_out: bool, hard: bool = False) -> Scene:
    """A crop of a photograph with up to `MOST_CARDS` cards, one below the other; hard
    ones, for training, have stranger glyphs and things beside them."""
    image = _background(rng, held_out, hard)
    width, height = image.size
    most = min(MOST_CARDS, height // CARD_SIDES[0])
    bands = int(rng.integers(0, most + 1))
    cards = []
    for band in range(bands):
        # Each in its own band of rows, so that "from top to bottom" is never in doubt.
        low, high = band * height // bands, (band + 1) * height // bands
        side = int(rng.integers(CARD_SIDES[0], min(CARD_SIDES[1], high - low) + 1))
        card = Card(
            digit=0,
            left=int(rng.integers(0, width - side + 1)),
            top=int(rng.integers(low, high - side + 1)),
            side=side,
        )
        cards.append(_paste(rng, image, card, held_out, hard))
    return Scene(image, tuple(cards))


def make_crowd(rng: Generator, hard: bool = False) -> Scene:
    """A training scene with cards all over it: a tower sees more digits in less time,
    but there is no order to ask for."""
    image = _background(rng, False, hard)
    width, height = image.size
    cards: list[Card] = []
    for _ in range(int(rng.integers(0, width * height // 24**2))):
        side = int(rng.integers(CARD_SIDES[0], CARD_SIDES[1] + 1))
        left = int(rng.integers(0, width - side + 1))
        top = int(rng.integers(0, height - side + 1))
        if all(
            max(left - card.left - card.side, card.left - left - side) >= 0
            or max(top - card.top - card.side, card.top - top - side) >= 0
            for card in cards
        ):
            card = Card(digit=0, left=left, top=top, side=side)
            cards.append(_paste(rng, image, card, False, hard))
    return Scene(image, tuple(cards))


def _background(rng: Generator, held_out: bool, hard: bool) -> Image.Image:
    width, height = (
        round(side * rng.uniform(0.85, 1.0))
        for side in SIZES[int(rng.integers(len(SIZES)))]
    )
    photos = photographs(held_out)
    photo = photos[int(rng.integers(len(photos)))]
    scale = rng.uniform(0.4, 1.0)
    part_height = max(1, int(min(photo.height, photo.width * height / width) * scale))
    part_width = max(1, int(part_height * width / height))
    left = int(rng.integers(0, max(1, photo.width - part_width + 1)))
    top = int(rng.integers(0, max(1, photo.height - part_height + 1)))
    part = photo.crop((left, top, left + part_width, top + part_height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    part = part.resize((width, height), Image.Resampling.BICUBIC)
    if not held_out:
        part = recolour(rng, part)
    if hard:
        clutter(rng, part, photos)
    return part


def _paste(
    rng: Generator, image: Image.Image, card: Card, held_out: bool, hard: bool
) -> Card:
    images, digits = glyphs(held_out)
    chosen = int(rng.integers(len(images)))
    paper = _colour(rng, 200, 256)
    side = card.side
    drawn = Image.new("RGB", (side, side), paper)
    margin = max(2, side // 10)
    inner = side - 2 * margin
    ink = images[chosen]
    if hard and rng.random() < 0.5:
        alike = [i for i, digit in enumerate(digits) if digit == digits[chosen]]
        other = images[alike[int(rng.integers(len(alike)))]]
        ink = Image.blend(ink, other, rng.uniform(0, 0.5))
    ink = ink.resize((inner, inner), Image.Resampling.BICUBIC)
    if not held_out:
        ink = lean(rng, ink)
    if hard:
        ink = warp(rng, ink)
    dark = Image.new("RGB", (inner, inner), _colour(rng, 0, 90))
    drawn.paste(dark, (margin, margin), Image.eval(ink, lambda value: 255 - value))
    ImageDraw.Draw(drawn).rectangle((0, 0, side - 1, side - 1), outline=(120, 120, 120))
    image.paste(drawn, (card.left, card.top))
    return Card(digits[chosen], card.left, card.top, side)


def _colour(rng: Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


Task = Callable[[Generator, Scene], Question]


def transcription(rng: Generator, scene: Scene) -> Question:
    digits = " ".join(str(card.digit) for card in scene.cards) or "none"
    return Question("transcription", "Read the digits from top to bottom.", digits)


def counting(rng: Generator, scene: Scene) -> Question:
    return Question("counting", "How many digits are there?", str(len(scene.cards)))


def corner(rng: Generator, scene: Scene) -> Question:
    """The digit in a quarter of the picture; asked where it is the only one there."""
    names = ("top left", "top right", "bottom left", "bottom right")
    found: list[list[int]] = [[], [], [], []]
    for card in scene.cards:
        right = 2 * card.left + card.side > scene.image.width
        low = 2 * card.top + card.side > scene.image.height
        found[2 * low + right].append(card.digit)
    clear = [i for i in range(4) if len(found[i]) < 2]
    held = [i for i in clear if found[i]]
    # Mostly something is there, where the scene allows it.
    pool = held if held and rng.random() < 0.7 else clear
    quarter = pool[int(rng.integers(len(pool)))]
    answer = str(found[quarter][0]) if found[quarter] else "nothing"
    return Question("corner", f"What is in the {names[quarter]}?", answer)


def presence(rng: Generator, scene: Scene) -> Question:
    """Yes or no, balanced over the scenes of `make_scene`, as in POPE."""
    there = sorted({card.digit for card in scene.cards})
    absent = [digit for digit in range(10) if digit not in there]
    # One in `MOST_CARDS + 1` shows no digit, and can only be answered by no.
    is_there = bool(there) and rng.random() < 0.5 * (MOST_CARDS + 1) / MOST_CARDS
    pool = there if is_there else absent
    digit = pool[int(rng.integers(len(pool)))]
    return Question("presence", f"Is there a {digit}?", "yes" if is_there else "no")


TASKS: Sequence[Task] = (
    transcription,
    counting,
    corner,
    presence,
)
