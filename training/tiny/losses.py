"""What the small model learns from: the tower's objectives, and the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.tiny.labels import BACKGROUND, IGNORE
from training.tiny.model import PATCH, TILE, TINY, prompt_of, visual_rows
from training.tiny.samples import Sample
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.tools.inspect.partitions import inner_tower

Generator = np.random.Generator
GRID = TILE // PATCH


class TowerHeads(nn.Module):
    """What the tower is trained through, and thrown away with."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TINY.vision_hidden)
        self.present = nn.Linear(TINY.vision_hidden, 10)
        self.digit = nn.Linear(TINY.vision_hidden, BACKGROUND + 1)
        self.middle = nn.Linear(TINY.vision_hidden, 1)
        self.row = nn.Linear(TINY.vision_hidden, GRID)
        self.column = nn.Linear(TINY.vision_hidden, GRID)

    def forward(
        self, hidden: Tensor, digits: Tensor, middles: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies; `[B, 1 + N, hidden]` and `[B, N]` of `Labels`."""
        hidden = self.norm(hidden.float())
        there = torch.stack([(digits == d).any(dim=1) for d in range(10)], dim=1)
        present = self.present(hidden[:, 0])
        whole = functional.binary_cross_entropy_with_logits(present, there.float())

        # Nearly all patches are background.
        weights = torch.where(digits == BACKGROUND, 0.1, 1.0)
        weights = weights.masked_fill(digits == IGNORE, 0).masked_fill(middles, 1)
        digit = self.digit(hidden[:, 1:])
        middle = self.middle(hidden[:, 1:]).squeeze(-1)
        dense = functional.cross_entropy(
            digit.flatten(0, 1),
            digits.flatten(),
            reduction="none",
            ignore_index=IGNORE,
        ).view_as(weights) + functional.binary_cross_entropy_with_logits(
            middle, middles.float(), reduction="none"
        )
        on_card = (digits >= 0) & (digits < BACKGROUND)
        facts = {
            "patch": (digit.argmax(dim=-1) == digits)[on_card].float().mean().item(),
            "middle": (middle > 0)[middles].float().mean().item(),
            "cls": ((present > 0) == there).all(dim=1).float().mean().item(),
        }
        return (dense * weights).sum() / weights.sum() + 2 * whole, facts

    def places(self, hidden: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies of where each patch lies in its partition."""
        patches = self.norm(hidden[:, 1:].float())
        index = torch.arange(GRID * GRID, device=hidden.device).expand(len(hidden), -1)
        total, facts = patches.new_zeros(()), {}
        for name, head, truth in (
            ("row", self.row, index // GRID),
            ("column", self.column, index % GRID),
        ):
            said = head(patches)
            total = total + functional.cross_entropy(
                said.flatten(0, 1), truth.flatten()
            )
            facts[name] = (said.argmax(dim=-1) == truth).float().mean().item()
        return total, facts


def tower_features(model: Any, tiles: Tensor) -> Tensor:
    """`[B, 1 + N, hidden]` of the feature layer, the last but one."""
    tower = inner_tower(model.model.vision_tower)
    hidden = tower.pre_layrnorm(tower.embeddings(tiles))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return hidden


def drop_tokens(sample: Sample, rng: Generator, even: bool = False) -> Tensor | None:
    """At random, never by attention or score.

    In a quarter of the scenes nothing is dropped. In another, all patches stay with one
    chance. In the others each partition's patches have a chance of their own, and those
    on cards a higher one, so that sequences differ in what they are full of, not in
    length alone, as they do after any selection by content.

    Args:
        sample: a scene as training sees it.
        rng: draws the chances, then the patches.
        even: wherever something is dropped, all patches have one chance.

    Returns:
        `[N + V_sub]` bool over the sequence, or None where nothing is dropped.
    """
    kind = rng.random()
    if kind < 0.25:
        return None
    digits = sample.labels.digits
    if even or kind < 0.5:
        chances = torch.full(digits.shape, rng.uniform(0.05, 1.0))
    else:
        # From 2% to 100%, as many at each order of magnitude.
        of_partitions = torch.from_numpy(0.02 ** rng.random((len(digits), 1)))
        on_card = torch.where(digits == BACKGROUND, 0.0, rng.uniform(0.6, 1.0))
        chances = torch.maximum(of_partitions, on_card)
    order = index_tables(sample.layout, torch.device("cpu")).sequence
    return torch.from_numpy(rng.random(len(order))) < chances.flatten()[order]


@dataclass(frozen=True)
class Row:
    """A picture and all questions about it, each behind the picture.

    Attributes:
        inputs: `[L, hidden]` embeddings.
        positions: `[L]`; those of each question follow the picture's.
        turns: `[L]`, 0 on the picture, else the question's number.
        targets: `[L]` token ids of answers, else IGNORE.
        tasks: of the answers' tokens.
    """

    inputs: Tensor
    positions: Tensor
    turns: Tensor
    targets: Tensor
    tasks: list[str]


def make_row(model: Any, tokenizer: Any, sample: Sample, visual: Tensor) -> Row:
    """Of a sample and its `[n, hidden]` rows of `visual_rows`."""
    embed = model.get_input_embeddings()
    before = torch.tensor(tokenizer(prompt_of("")[0]).input_ids, device=visual.device)
    inputs = [embed(before), visual.to(embed.weight.dtype)]
    length = len(before) + len(visual)
    positions, turns = [*range(length)], [0] * length
    targets, tasks = [IGNORE] * length, []
    for number, question in enumerate(sample.questions, start=1):
        asked = tokenizer(prompt_of(question.text)[1]).input_ids
        said = tokenizer(f" {question.answer}").input_ids
        said = [*said, tokenizer.eos_token_id]
        ids = [*asked, *said]
        inputs.append(embed(torch.tensor(ids, device=visual.device)))
        positions.extend(range(length, length + len(ids)))
        turns.extend([number] * len(ids))
        targets.extend([IGNORE] * len(asked) + said)
        tasks.extend([question.task] * len(said))
    return Row(
        torch.cat(inputs),
        torch.tensor(positions),
        torch.tensor(turns),
        torch.tensor(targets),
        tasks,
    )


def predict_answers(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """`[n, vocabulary]` logits and `[n]` ids of all answers' tokens, row by row."""
    device = model.device
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    turns = pad([row.turns for row in rows], padding_value=-1)
    causal = torch.ones(turns.shape[1], turns.shape[1], dtype=torch.bool).tril()
    same = turns[:, :, None] == turns[:, None, :]
    seen = causal & (same | (turns == 0)[:, None, :])
    hidden = model.model.language_model(
        inputs_embeds=pad([row.inputs for row in rows]),
        attention_mask=seen[:, None].to(device),
        position_ids=pad([row.positions for row in rows]).to(device),
        use_cache=False,
    ).last_hidden_state
    targets = pad([row.targets for row in rows], padding_value=IGNORE)
    following = targets[:, 1:].to(device)
    chosen = following != IGNORE
    return model.lm_head(hidden[:, :-1][chosen]).float(), following[chosen]


def answer_loss(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    keeps: Sequence[Tensor | None],
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the answers' tokens, and the share that is right by task.

    All questions of a scene are in one sequence: each attends to the picture and to
    itself, and stands right behind the picture. `keeps` says what stays of each
    picture, as `visual_rows` takes it.
    """
    inner = model.model
    with torch.no_grad():
        tiles = torch.cat([sample.tiles for sample in samples]).to(model.device)
        features = tower_features(model, tiles)[:, 1:]
    projected = inner.multi_modal_projector(features)
    counts = [len(sample.tiles) for sample in samples]
    rows = [
        make_row(
            model,
            tokenizer,
            sample,
            visual_rows(own.flatten(0, 1), sample.layout, inner.image_newline, keep),
        )
        for sample, own, keep in zip(
            samples, projected.split(counts), keeps, strict=True
        )
    ]
    # Rows of like length together: padding takes as long as tokens do.
    rows.sort(key=lambda row: len(row.turns))
    parts = [predict_answers(model, rows[i : i + 4]) for i in range(0, len(rows), 4)]
    logits, answers = (torch.cat(part) for part in zip(*parts, strict=True))
    tasks = [task for row in rows for task in row.tasks]
    right = (logits.argmax(dim=-1) == answers).tolist()
    facts = {
        task: fmean(r for r, of in zip(right, tasks, strict=True) if of == task)
        for task in dict.fromkeys(tasks)
    }
    return functional.cross_entropy(logits, answers), facts
