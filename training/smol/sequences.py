"""Pictures and questions as sequences of the LLM, and the loss of the answers.

All questions about a picture share its tokens: each attends to the picture and to
itself, and stands right behind the picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from training.smol.features import Sample
from training.smol.language import prompt_of
from training.smol.questions import Question
from vllm_hired.layouts import Layout
from vllm_hired.selectors.index_tables import index_tables

Generator = np.random.Generator
NO_TARGET = -100
TEXT, CELL, NEWLINE = 0, 1, 2
"""What a position of a sequence holds."""
MULTIPLE = 8
"""Of lengths: attention with a mask is slow on a GPU otherwise."""


def visual_rows(
    features: Tensor,
    layout: Layout,
    newline: Tensor,
    keep: Tensor | None,
) -> Tensor:
    """Projected tokens of one image, in the order in which the LLM gets them.

    Args:
        features: `[P * N, hidden]`, projected.
        layout: of the image.
        newline: `[hidden]`.
        keep: `[N + V_sub]` bool over the sequence, or None for the stock sequence
            with its newline tokens.
    """
    rows = features[index_tables(layout, features.device).sequence]
    if keep is not None:
        return rows[keep.to(rows.device)]
    n = layout.cells_per_partition
    canvas = rows[n:].view(layout.height, layout.width, -1)
    ends = newline.expand(layout.height, 1, -1)
    return torch.cat((rows[:n], torch.cat((canvas, ends), dim=1).flatten(0, 1)))


@dataclass(frozen=True)
class Asked:
    """One picture of a batch, with what is asked and what stays of it.

    Attributes:
        sample: the picture.
        questions: about it.
        keep: `[N + V_sub]` bool over the sequence, or None for all of it.
    """

    sample: Sample
    questions: list[Question]
    keep: Tensor | None

    @property
    def num_visual(self) -> int:
        """Visual tokens that stay."""
        if self.keep is None:
            return self.sample.layout.num_stock_tokens
        return int(self.keep.sum())

    def kept(self) -> tuple[Tensor, Tensor]:
        """`[v]` of `CELL` and `NEWLINE`, and the cells' `[m, 384]` features, in the
        order in which the LLM gets them."""
        features, layout = self.sample.features.flatten(0, 1), self.sample.layout
        cells = torch.arange(len(features))[:, None]
        order = visual_rows(cells, layout, torch.tensor([-1]), self.keep).squeeze(1)
        kinds = torch.where(order < 0, NEWLINE, CELL)
        return kinds, features[order[order >= 0]]


def drop_tokens(rng: Generator, sample: Sample, share: float) -> Tensor:
    """`[N + V_sub]` bool: each stays with one chance, whatever it shows."""
    return torch.from_numpy(rng.random(sample.layout.num_selectable) < share)


@dataclass(frozen=True)
class Row:
    """A picture and its questions.

    Attributes:
        features: `[m, 384]` of the cells that stay.
        kinds: `[L]`, what each position holds.
        ids: `[L]` token ids, 0 on the picture.
        positions: `[L]`; those of each question follow the picture's.
        turns: `[L]`, 0 on the picture, else the question's number.
        targets: `[L]` token ids of answers, else `NO_TARGET`.
    """

    features: Tensor
    kinds: Tensor
    ids: Tensor
    positions: Tensor
    turns: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Batch:
    """Rows side by side, `[B, L]` each, and where the answers are.

    Attributes:
        features: `[m, 384]` of all rows' cells.
        kinds, ids, positions, turns: as a row's.
        before: `[n]` flat positions from which the answers' tokens are predicted.
        answers: `[n]` these tokens.
        question: `[n]` to which question each belongs.
        tasks: of all questions.
    """

    features: Tensor
    kinds: Tensor
    ids: Tensor
    positions: Tensor
    turns: Tensor
    before: Tensor
    answers: Tensor
    question: Tensor
    tasks: list[str]


class Writer:
    """Writes pictures and questions as token ids; needs no LLM.

    Attributes:
        tokenizer: the LLM's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: Callable[[str], list[int]] = lru_cache(100_000)(self._ids)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def row(self, asked: Asked) -> Row:
        visual, features = asked.kept()
        before = self.ids(prompt_of("")[0])
        length = len(before) + len(visual)
        kinds = [torch.full((len(before),), TEXT), visual]
        ids = [*before, *[0] * len(visual)]
        targets = [NO_TARGET] * length
        positions, turns = [*range(length)], [0] * length
        for number, question in enumerate(asked.questions, start=1):
            prompt = self.ids(prompt_of(question.text)[1])
            answer = self.ids(f"{question.answer}<|im_end|>")
            own = len(prompt) + len(answer)
            ids += [*prompt, *answer]
            targets += [*[NO_TARGET] * len(prompt), *answer]
            positions += range(length, length + own)
            turns += [number] * own
        kinds.append(torch.full((len(ids) - length,), TEXT))
        rest = (torch.tensor(values) for values in (ids, positions, turns, targets))
        return Row(features, torch.cat(kinds), *rest)

    def batch(self, batch: Sequence[Asked]) -> Batch:
        rows = [self.row(asked) for asked in batch]
        following = _side_by_side([row.targets for row in rows], NO_TARGET)
        following = functional.pad(following[:, 1:], (0, 1), value=NO_TARGET).flatten()
        before = (following != NO_TARGET).nonzero().squeeze(1)
        questions = [question for asked in batch for question in asked.questions]
        lengths = [len(self.ids(f"{q.answer}<|im_end|>")) for q in questions]
        return Batch(
            features=torch.cat([row.features for row in rows]),
            kinds=_side_by_side([row.kinds for row in rows], TEXT),
            ids=_side_by_side([row.ids for row in rows], 0),
            positions=_side_by_side([row.positions for row in rows], 0),
            turns=_side_by_side([row.turns for row in rows], -1),
            before=before,
            answers=following[before],
            question=torch.arange(len(lengths)).repeat_interleave(
                torch.tensor(lengths)
            ),
            tasks=[question.task for question in questions],
        )


def _side_by_side(rows: Sequence[Tensor], value: int) -> Tensor:
    padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
    return functional.pad(padded, (0, -padded.shape[1] % MULTIPLE), value=value)


class Speaker:
    """An LLM with a projector before it.

    Attributes:
        language: a `LlamaForCausalLM`.
        projector: `[..., 384]` features -> `[..., hidden]`.
        newline: `[hidden]`.
    """

    def __init__(self, language: Any, projector: Any, newline: Tensor) -> None:
        self.language, self.projector, self.newline = language, projector, newline

    def inputs(self, batch: Batch) -> Tensor:
        """`[B, L, hidden]` float32 embeddings."""
        device = self.newline.device
        embedded = self.language.get_input_embeddings()(batch.ids.to(device)).float()
        projected = self.projector(batch.features.to(device).float()).float()
        kinds = batch.kinds.to(device)[:, :, None]
        with_cells = embedded.masked_scatter(kinds == CELL, projected)
        return torch.where(kinds == NEWLINE, self.newline, with_cells)

    def predict(self, batch: Batch) -> Tensor:
        """`[n, vocabulary]` logits of all answers' tokens."""
        device = self.newline.device
        turns = batch.turns.to(device)
        length = turns.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        same = turns[:, :, None] == turns[:, None, :]
        seen = causal & (same | (turns == 0)[:, None, :])
        hidden = self.language.model(
            inputs_embeds=self.inputs(batch),
            attention_mask=seen[:, None],
            position_ids=batch.positions.to(device),
            use_cache=False,
        ).last_hidden_state
        return self.language.lm_head(hidden.flatten(0, 1)[batch.before.to(device)])


def answer_loss(speaker: Speaker, batch: Batch) -> tuple[Tensor, dict[str, list[bool]]]:
    """Cross entropy of the answers' tokens, the mean over answers; and by task, whether
    all tokens of each answer are right, each given those before it."""
    with torch.autocast("cuda", torch.bfloat16, speaker.newline.is_cuda):
        logits = speaker.predict(batch).float()
    answers, question = (
        tensor.to(logits.device) for tensor in (batch.answers, batch.question)
    )
    losses = functional.cross_entropy(logits, answers, reduction="none")
    tokens = torch.zeros(len(batch.tasks), device=logits.device)
    of_answers = tokens.index_add(0, question, losses)
    of_answers = of_answers / tokens.index_add(0, question, torch.ones_like(losses))
    wrong = tokens.index_add(0, question, (logits.argmax(-1) != answers).float())
    found: dict[str, list[bool]] = {}
    for task, count in zip(batch.tasks, wrong.tolist(), strict=True):
        found.setdefault(task, []).append(count == 0)
    return of_answers.mean(), found
