"""Pictures and questions as rows of the LLM, and the loss of the answers.

All questions about a picture share its tokens: each attends to the picture and to
itself, and stands right behind the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.tiny.model import visual_rows
from training.smol.features import Sample
from training.smol.language import prompt_of
from training.smol.questions import Question

Generator = np.random.Generator
NO_TARGET = -100


@dataclass(frozen=True)
class Row:
    """A picture and its questions.

    Attributes:
        inputs: `[L, hidden]` embeddings.
        positions: `[L]`; those of each question follow the picture's.
        turns: `[L]`, 0 on the picture, else the question's number.
        targets: `[L]` token ids of answers, else `NO_TARGET`.
    """

    inputs: Tensor
    positions: Tensor
    turns: Tensor
    targets: Tensor


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


def drop_tokens(rng: Generator, sample: Sample, share: float) -> Tensor:
    """`[N + V_sub]` bool: each stays with one chance, whatever it shows."""
    return torch.from_numpy(rng.random(sample.layout.num_selectable) < share)


class Speaker:
    """An LLM with a projector before it.

    Attributes:
        language: a `LlamaForCausalLM`.
        projector: `[..., 384]` features -> `[..., hidden]`.
        newline: `[hidden]`.
    """

    def __init__(
        self, language: Any, projector: Any, newline: Tensor, tokenizer: Any
    ) -> None:
        self.language, self.projector = language, projector
        self.newline, self.tokenizer = newline, tokenizer

    def row(self, asked: Asked) -> Row:
        device = self.newline.device
        features = asked.sample.features.flatten(0, 1).to(device)
        layout = asked.sample.layout
        if asked.keep is None:
            projected = self.projector(features.float())
            visual = visual_rows(projected, layout, self.newline, None)
        else:
            # Only what stays is projected.
            kept = visual_rows(features, layout, self.newline, asked.keep)
            visual = self.projector(kept.float())
        embed = self.language.get_input_embeddings()
        before = self.ids(prompt_of("")[0])
        inputs = [embed(before.to(device)), visual]
        length = len(before) + len(visual)
        positions, turns = [torch.arange(length)], [torch.zeros(length)]
        targets = [torch.full((length,), NO_TARGET)]
        for number, question in enumerate(asked.questions, start=1):
            prompt = self.ids(prompt_of(question.text)[1])
            answer = self.ids(f"{question.answer}<|im_end|>")
            own = torch.cat((prompt, answer))
            inputs.append(embed(own.to(device)))
            positions.append(torch.arange(length, length + len(own)))
            turns.append(torch.full((len(own),), float(number)))
            targets += [torch.full((len(prompt),), NO_TARGET), answer]
        return Row(
            torch.cat(inputs),
            torch.cat(positions),
            torch.cat(turns),
            torch.cat(targets),
        )

    def ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text).input_ids)

    def predict(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """`[n, vocabulary]` logits and `[n]` ids of all answers' tokens, by row."""
        device = self.newline.device
        inputs = pad_sequence([row.inputs for row in rows], batch_first=True)
        positions = pad_sequence([row.positions for row in rows], batch_first=True)
        turns = pad_sequence([row.turns for row in rows], True, -1)
        targets = pad_sequence([row.targets for row in rows], True, NO_TARGET)
        causal = torch.ones(turns.shape[1], turns.shape[1], dtype=torch.bool).tril()
        same = turns[:, :, None] == turns[:, None, :]
        seen = causal & (same | (turns == 0)[:, None, :])
        hidden = self.language.model(
            inputs_embeds=inputs,
            attention_mask=seen[:, None].to(device),
            position_ids=positions.to(device),
            use_cache=False,
        ).last_hidden_state
        following = targets[:, 1:].to(device)
        chosen = following != NO_TARGET
        return self.language.lm_head(hidden[:, :-1][chosen]), following[chosen]


def answer_loss(
    speaker: Speaker, batch: Sequence[Asked]
) -> tuple[Tensor, dict[str, list[bool]]]:
    """Cross entropy of the answers' tokens, the mean over answers; and by task, whether
    all tokens of each answer are right, each given those before it."""
    logits, ids = speaker.predict([speaker.row(asked) for asked in batch])
    losses = functional.cross_entropy(logits, ids, reduction="none")
    right = logits.argmax(dim=-1) == ids
    questions = [question for asked in batch for question in asked.questions]
    lengths = [len(speaker.ids(f"{q.answer}<|im_end|>")) for q in questions]
    of_answers = torch.stack([part.mean() for part in losses.split(lengths)])
    found: dict[str, list[bool]] = {}
    for question, part in zip(questions, right.split(lengths), strict=True):
        found.setdefault(question.task, []).append(bool(part.all()))
    return of_answers.mean(), found
