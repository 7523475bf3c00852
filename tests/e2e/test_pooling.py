"""Embedding models made of a LLaVA: the pooling runner."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from vllm import LLM

from tests.conftest import MakeEngine
from tests.e2e.test_generation import ONE, TWO
from tests.e2e.test_processes import IMAGES, REQUESTS
from tests.engine import answers, prompt
from tests.processes import STOCK, Processes, answer
from tests.reference import Reference

POOLING = {"runner": "pooling", "convert": "embed"}


def embed(llm: LLM, *requests: dict[str, Any]) -> Tensor:
    """`[requests, hidden]`, of length 1 each, from the last token."""
    outputs = llm.embed(list(requests), use_tqdm=False)
    return torch.tensor([output.outputs.embedding for output in outputs])


def test_embeddings_equal_hfs(
    any_checkpoint: Path, make_engine: MakeEngine, reference: Reference
) -> None:
    """At three budgets in one batch; another budget is another embedding."""
    llm = make_engine(any_checkpoint, hired_budget=0.2, hired_max_budget=1.0, **POOLING)
    cases = [("0.1", ONE), ("0.2", ONE), ("0.4", TWO)]
    requests = [prompt(*sizes, budget=float(rho)) for rho, sizes in cases]
    expected = torch.stack(
        [
            reference.last_hidden_state(request, rho)
            for request, (rho, _) in zip(requests, cases, strict=True)
        ]
    )
    embeddings = embed(llm, *requests)
    assert (cosine_similarity(embeddings, expected) > 0.9999).all()
    assert cosine_similarity(embeddings[0], embeddings[1], dim=0) < 0.999


def test_without_a_budget_embeddings_are_stocks(
    checkpoint: Path, make_engine: MakeEngine, processes: Processes
) -> None:
    """Bit for bit."""
    stock = processes(STOCK, answer, str(checkpoint), REQUESTS, **POOLING)
    assert len(stock["outputs"]) == 3
    requests = [prompt(*sizes) for sizes in IMAGES]
    assert answers(make_engine(checkpoint, **POOLING), requests, 1) == stock
