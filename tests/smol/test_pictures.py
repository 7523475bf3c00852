"""Pictures and questions of `llava-next-smol`: what is asked has the answer it says."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from training.smol.assets import words
from training.smol.evaluate import NAMES as TASK_NAMES
from training.smol.evaluate import trials
from training.smol.features import CELLS, GRID, IGNORE, patch_classes
from training.smol.objects import LETTERS, NAMES
from training.smol.pictures import (
    FIRST_LETTER,
    Picture,
    make_chart,
    make_crop,
    make_page,
    make_scene,
)
from training.smol.questions import QUARTERS, TRAINING, Facts, ask

pytestmark = [pytest.mark.slow, pytest.mark.matrix]

Make = Callable[[np.random.Generator, bool], Picture]


def rng_of(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


@pytest.mark.parametrize("make", [make_crop, make_scene, make_page, make_chart])
def test_a_picture_follows_from_its_seed(make: Make) -> None:
    one, same, other = (make(rng_of(seed), True) for seed in (3, 3, 4))
    assert Facts.of(one) == Facts.of(same)
    assert np.array_equal(np.asarray(one.image), np.asarray(same.image))
    assert np.array_equal(one.classes, same.classes)
    assert Facts.of(one) != Facts.of(other)


@pytest.mark.parametrize("make", [make_crop, make_scene, make_page, make_chart])
def test_answers_are_what_the_picture_shows(make: Make) -> None:
    for seed in range(30):
        picture = make(rng_of(seed), True)
        facts = Facts.from_json(Facts.of(picture).as_json())
        shown = [thing.name for thing in picture.things]
        for question in ask(rng_of(seed), facts, TRAINING[facts.kind]):
            text, answer = question.text, question.answer
            if question.task == "presence":
                asked = [name for name in NAMES if text.endswith(f" {name}?")]
                assert (asked[-1] in shown) == (answer == "yes")
            elif question.task == "counting":
                assert int(answer) == len(shown)
            elif question.task == "reading":
                assert answer.replace(" ", "") == picture.sign
            elif question.task == "naming":
                quarter = text.removeprefix("What is in the ").rstrip("?")
                assert middles(picture)[answer.split()[-1]] == quarter
            elif question.task == "place":
                name = text.removeprefix("Where is the ").rstrip("?")
                assert middles(picture)[name] == answer
            else:
                name = text.rstrip("?").split()[-1]
                assert picture.fields[name] == answer


def middles(picture: Picture) -> dict[str, str]:
    """Quarter by object, from the pixels that show it."""
    found = {}
    for thing in picture.things:
        left, top, right, bottom = thing.box
        x, y = (left + right) / 2, (top + bottom) / 2
        row = "top" if y <= picture.image.height / 2 else "bottom"
        col = "left" if x <= picture.image.width / 2 else "right"
        found[thing.name] = f"{row} {col}"
    assert set(found.values()) <= set(QUARTERS)
    return found


def test_patches_are_called_by_what_they_show() -> None:
    for seed in range(10):
        picture = make_crop(rng_of(seed), True)
        classes = patch_classes(picture)
        assert classes.shape == (CELLS,)
        for cell, found in enumerate(classes.tolist()):
            row, col = divmod(cell, GRID)
            pixels = picture.classes[14 * row : 14 * row + 14, 14 * col : 14 * col + 14]
            counts = Counter(pixels.flatten().tolist())
            share = {name: n / 196 for name, n in counts.items()}
            if found == 0:
                assert share[0] >= 0.9
            elif found != IGNORE:
                assert share[found] >= 0.4
        named = {NAMES[c - 1] for c in classes.tolist() if 0 < c < FIRST_LETTER}
        assert named <= {thing.name for thing in picture.things}
        read = {
            LETTERS[c - FIRST_LETTER] for c in classes.tolist() if c >= FIRST_LETTER
        }
        assert read <= set(picture.sign)


def test_held_out_words_are_held_out() -> None:
    held_out, known = (set(words(which)) for which in (True, False))
    assert held_out
    assert not held_out & known
    for seed in range(40):
        for which, own in ((True, held_out), (False, known)):
            if which:
                picture = make_scene(rng_of(seed), which)
                assert not picture.sign or picture.sign in own
            assert set(make_page(rng_of(seed), which).fields) <= own


def test_trials_have_a_question_of_each_task_and_no_cheap_answer() -> None:
    found = trials(150)
    assert all(
        [query.question.task for query in trial] == list(TASK_NAMES) for trial in found
    )
    most = {"presence": 0.62, "place": 0.37, "counting": 0.33, "chart": 0.22}
    for column, task in enumerate(TASK_NAMES):
        answers = Counter(trial[column].question.answer for trial in found)
        share = answers.most_common(1)[0][1] / len(found)
        assert share < most.get(task, 0.1), (task, answers)
