"""The small model's data and losses: what is shown, asked, and learnt from."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from random_checkpoints.llava import make_config, make_tokenizer
from training.tiny.data import (
    HELD_OUT_PHOTOGRAPHS,
    MOST_CARDS,
    TASKS,
    TRAINING_PHOTOGRAPHS,
    Scene,
    glyphs,
    make_crowd,
    make_scene,
)
from training.tiny.labels import BACKGROUND, IGNORE, SEEN, UNSEEN, patch_labels
from training.tiny.losses import TowerHeads, answer_loss, drop_tokens
from training.tiny.model import PATCH, TILE, TINY, prompt_of, visual_rows
from training.tiny.samples import Sample, Samples
from vllm_hired.layouts.llava_next import anyres_layout
from vllm_hired.selectors.index_tables import index_tables


def scenes(count: int, is_held_out: bool = False) -> list[Scene]:
    return [
        make_scene(np.random.default_rng((5, i)), is_held_out) for i in range(count)
    ]


def test_a_scene_follows_from_its_seed() -> None:
    for one, again in zip(scenes(5), scenes(5), strict=True):
        assert one.cards == again.cards
        assert one.image.tobytes() == again.image.tobytes()


def test_held_out_is_never_shown_in_training() -> None:
    assert not set(TRAINING_PHOTOGRAPHS) & set(HELD_OUT_PHOTOGRAPHS)
    seen = {image.tobytes() for image in glyphs(False)[0]}
    unseen = [image.tobytes() for image in glyphs(True)[0]]
    assert len(unseen) == 360
    assert not seen & set(unseen)


@pytest.mark.slow
def test_answers_are_true() -> None:
    """Each asked again of the cards, in another way."""
    told: Counter[str] = Counter()
    for number, scene in enumerate(scenes(400)):
        rng = np.random.default_rng(number)
        digits = [card.digit for card in scene.cards]
        assert [c.top for c in scene.cards] == sorted(c.top for c in scene.cards)
        for task in TASKS:
            question = task(rng, scene)
            if question.task == "transcription":
                assert question.answer == (" ".join(map(str, digits)) or "none")
            elif question.task == "counting":
                assert question.answer == str(len(digits))
            elif question.task == "presence":
                asked = int(question.text[-2])
                assert question.answer == ("yes" if asked in digits else "no")
                told[question.answer] += 1
            else:
                top, left = "top" in question.text, "left" in question.text
                middle = scene.image.width / 2, scene.image.height / 2
                there = [
                    str(card.digit)
                    for card in scene.cards
                    if (card.left + card.side / 2 <= middle[0]) == left
                    and (card.top + card.side / 2 <= middle[1]) == top
                ]
                assert [question.answer] == (there or ["nothing"])
    assert 0.4 < told["yes"] / told.total() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
def test_labels_are_where_the_processor_puts_the_cards(number: int) -> None:
    """The scene's cards painted white on black, through HF's own image processor."""
    scene = scenes(12)[number]
    processor = Samples(0, 0, 1, 0, 0, ()).processor
    labels = patch_labels(scene, TINY.pinpoints, TILE, PATCH).digits
    shares = []
    for card in scene.cards:
        mask = np.zeros((scene.image.height, scene.image.width, 3), dtype=np.uint8)
        mask[card.top : card.top + card.side, card.left : card.left + card.side] = 255
        tiles = processor([mask], return_tensors="pt", do_normalize=False)
        grey = tiles["pixel_values"][0].mean(dim=1)
        patches = grey.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        shares.append(patches.mean(dim=(-1, -2)).flatten(1))
    assert labels.shape[1] == 64
    if not shares:
        assert (labels == BACKGROUND).all()
        return
    covered = torch.stack(shares)
    most, card_index = covered.max(dim=0)
    digits = torch.tensor([card.digit for card in scene.cards])[card_index]
    # Resizing rounds to pixels and blurs the edges.
    clear = (most > SEEN + 0.12) & (covered.sum(dim=0) - most < UNSEEN)
    assert (labels[clear] == digits[clear]).all()
    assert (labels[covered.sum(dim=0) < UNSEEN / 2] == BACKGROUND).all()


def test_the_stock_sequence_is_hfs() -> None:
    """Newline tokens included, by HF's own packing."""
    model: Any = AutoModelForImageTextToText.from_config(
        make_config(TINY, make_tokenizer())
    )
    for height, width in ((224, 224), (200, 190), (101, 330), (330, 101)):
        layout = anyres_layout(height, width, TINY.pinpoints, TILE, PATCH)
        features = torch.randn(layout.num_partitions, 64, TINY.text_hidden)
        newline = torch.randn(TINY.text_hidden)
        (packed,), _ = model.model.pack_image_features(
            [features], torch.tensor([[height, width]]), "default", newline
        )
        rows = visual_rows(features.flatten(0, 1), layout, newline, None)
        assert torch.equal(rows, packed)


def test_crowds_do_not_overlap() -> None:
    """Every pixel of the picture lies on one card at most, and every card on it."""
    counts = []
    for number in range(30):
        scene = make_crowd(np.random.default_rng(number))
        cards = np.zeros((scene.image.height, scene.image.width), dtype=int)
        for card in scene.cards:
            cards[
                card.top : card.top + card.side, card.left : card.left + card.side
            ] += 1
        assert cards.max(initial=0) <= 1
        assert cards.sum() == sum(card.side**2 for card in scene.cards)
        counts.append(len(scene.cards))
    assert max(counts) > 2 * MOST_CARDS


@pytest.mark.slow
def test_crowds_become_rarer_and_end() -> None:
    source = Samples(1, 0, 1, 400, 0, ())
    sizes = [len(source.scene(np.random.default_rng(n), n).cards) for n in range(800)]
    many = [[size > MOST_CARDS for size in sizes[n : n + 100]] for n in (0, 300)]
    assert sum(many[0]) > 2 * sum(many[1]) > 0
    assert max(sizes[400:]) == MOST_CARDS


@pytest.mark.parametrize("number", range(6))
def test_each_card_has_a_middle_in_the_thumbnail_and_in_one_tile(number: int) -> None:
    scene = scenes(6)[number]
    labels = patch_labels(scene, TINY.pinpoints, TILE, PATCH)
    assert labels.middles[0].sum() == len(scene.cards)
    assert labels.middles[1:].sum() == len(scene.cards)
    # In a tile, a card's middle patch is on it or nearly so, and shows its digit.
    on_middles = labels.digits[1:][labels.middles[1:]]
    told = [digit for digit in on_middles.tolist() if digit != IGNORE]
    digits = Counter(card.digit for card in scene.cards)
    assert BACKGROUND not in told
    assert Counter(told) <= digits


def shares_that_stay(sample: Sample, keep: torch.Tensor) -> list[float] | None:
    """Of background patches and of patches on cards; None where no card is."""
    assert keep.shape == (sample.layout.num_selectable,)
    order = index_tables(sample.layout, torch.device("cpu")).sequence
    on_card = (sample.labels.digits.flatten() != BACKGROUND)[order]
    if not on_card.any():
        return None
    return [side.float().mean().item() for side in (keep[~on_card], keep[on_card])]


def test_what_training_drops() -> None:
    """Shares that stay: of scenes, of background patches and of patches on cards."""
    source = Samples(3, 0, 1, 0, 0, ())
    rng = np.random.default_rng(0)
    samples = [s for s in map(source.sample, range(30)) if len(s.labels.digits) == 5]
    untouched, kept = 0, []
    for number in range(1000):
        sample = samples[number % len(samples)]
        keep = drop_tokens(sample, rng)
        if keep is None:
            untouched += 1
        elif (shares := shares_that_stay(sample, keep)) is not None:
            kept.append(shares)
    assert untouched / 1000 == pytest.approx(0.25, abs=0.06)
    of_background, of_cards = np.array(kept).T
    assert of_background.min() < 0.1
    assert of_background.max() > 0.9
    # In a third from 5% to 100%, uniform; else from 2% to 100% on a scale of
    # logarithms, and cards from 60% up.
    background, cards = (0.525 + 2 * 0.25) / 3, (0.525 + 2 * 0.81) / 3
    assert of_background.mean() == pytest.approx(background, abs=0.05)
    assert of_cards.mean() == pytest.approx(cards, abs=0.05)


@pytest.mark.slow
def test_even_dropping_does_not_know_the_cards() -> None:
    source = Samples(3, 0, 1, 0, 0, ())
    rng = np.random.default_rng(0)
    more = []
    for sample in map(source.sample, range(400)):
        keep = drop_tokens(sample, rng, even=True)
        shares = None if keep is None else shares_that_stay(sample, keep)
        if shares is not None:
            background, cards = shares
            more.append(cards - background)
    assert len(more) > 150
    assert np.mean(more) == pytest.approx(0, abs=0.03)


def test_places_are_those_of_rows_and_columns() -> None:
    """Features that say their own row and column, by heads that copy them."""
    heads = TowerHeads()
    grid = TILE // PATCH
    hidden = torch.zeros(2, 1 + grid * grid, TINY.vision_hidden)
    for patch in range(grid * grid):
        hidden[:, 1 + patch, patch // grid] = 9
        hidden[:, 1 + patch, grid + patch % grid] = 9
    with torch.no_grad():
        for head, first in ((heads.row, 0), (heads.column, grid)):
            head.weight.zero_()
            head.weight[:, first : first + grid] = torch.eye(grid)
        loss, facts = heads.places(hidden)
        turned, of_turned = heads.places(hidden.flip(1))
    assert facts == {"row": 1.0, "column": 1.0}
    assert of_turned["row"] < 0.2
    assert loss < turned


@pytest.mark.slow
def test_packed_questions_cost_what_each_costs_alone() -> None:
    """The loss of one sequence of four questions, against HF on one at a time."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(make_config(TINY, tokenizer))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    source = Samples(3, 0, 1, 0, 0, TASKS)
    samples = [source.sample(number) for number in range(5)]
    samples = [
        type(s)(s.tiles.float(), s.labels, s.layout, s.questions) for s in samples
    ]
    losses, count = 0.0, 0
    with torch.inference_mode():
        packed, facts = answer_loss(model, tokenizer, samples, [None] * 5)
        for number, sample in enumerate(samples):
            scene = source.scene(np.random.default_rng((3, number)), number)
            for question in sample.questions:
                before, after = prompt_of(question.text)
                answer = [*tokenizer(f" {question.answer}").input_ids]
                answer.append(tokenizer.eos_token_id)
                image = [
                    model.config.image_token_index
                ] * sample.layout.num_stock_tokens
                ids = [
                    *tokenizer(before).input_ids,
                    *image,
                    *tokenizer(after).input_ids,
                    *answer,
                ]
                logits = model(
                    input_ids=torch.tensor([ids]),
                    pixel_values=sample.tiles[None],
                    image_sizes=torch.tensor([scene.image.size[::-1]]),
                ).logits[0, -len(answer) - 1 : -1]
                losses += torch.nn.functional.cross_entropy(
                    logits, torch.tensor(answer), reduction="sum"
                ).item()
                count += len(answer)
    assert packed.item() == pytest.approx(losses / count, rel=1e-4)
    assert [*facts] == [task.__name__ for task in TASKS]
