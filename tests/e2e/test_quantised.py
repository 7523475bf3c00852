"""Quantised towers and LLMs: what HF gives with the weights that they stand for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from vllm import SamplingParams

from tests.conftest import MakeEngine, WriteCheckpoint
from tests.e2e.test_generation import ONE, TWO
from tests.engine import prompt
from tests.quantised import SCHEMES, quantise_checkpoint
from tests.reference import Reference
from vllm_hired.selectors.base import Selection


@pytest.mark.parametrize("name", SCHEMES)
def test_equals_hf_with_the_weights_that_are_meant(
    make_checkpoint: WriteCheckpoint,
    make_engine: MakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The kept patches, their embeddings, and the logits that follow."""
    if name == "w4a16" and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        pytest.skip("vLLM has no kernel for 4-bit weights on a CPU without AVX-512")
    plain = make_checkpoint()
    quantised, meant = quantise_checkpoint(plain, tmp_path, SCHEMES[name])
    llm = make_engine(quantised, hired_budget=0.2)
    (model,) = llm.apply_model(lambda model: model)
    attention = model.vision_tower.vision_model.encoder.layers[0].self_attn
    method = type(attention.qkv_proj.quant_method).__name__
    assert method == "CompressedTensorsLinearMethod"

    kept: list[list[int]] = []
    embeddings: list[Tensor] = []
    select, embed = model.selector.select, model.embed_multimodal

    def record_kept(*args: Any) -> Selection:
        selection: Selection = select(*args)
        kept.append(selection.cells.tolist())
        return selection

    def record_embeddings(**kwargs: Any) -> list[Tensor]:
        rows: list[Tensor] = embed(**kwargs)
        embeddings.extend(rows)
        return rows

    monkeypatch.setattr(model.selector, "select", record_kept)
    monkeypatch.setattr(model, "embed_multimodal", record_embeddings)
    requests = [prompt(*sizes, seed=10 * i) for i, sizes in enumerate((ONE, TWO))]
    outputs = llm.generate(
        requests, SamplingParams(max_tokens=1, logprobs=-1), use_tqdm=False
    )

    images = [i for request in requests for i in request["multi_modal_data"]["image"]]
    assert len(kept) == len(embeddings) == len(images)
    unquantised = Reference(plain)
    swapped = changed = 0
    for image, mine, rows in zip(images, kept, embeddings, strict=True):
        theirs = meant.kept_indices(image, "0.2")
        both = [patch for patch in mine if patch in theirs]
        assert both == [patch for patch in theirs if patch in mine]
        assert len(mine) == len(theirs)
        swapped += len(mine) - len(both)
        changed += len({*mine} - {*unquantised.kept_indices(image, "0.2")})
        similarity = cosine_similarity(
            rows[[mine.index(patch) for patch in both]],
            meant.kept_embeddings(image, "0.2")[[theirs.index(p) for p in both]],
        )
        assert similarity.mean() > 0.999
    # A value that lies between two integers may be rounded either way, so that
    # patches all but tied may swap; what quantisation itself changes is far more.
    assert swapped <= 2 < 10 <= changed

    given = iter(embeddings)
    monkeypatch.setattr(meant, "kept_embeddings", lambda *_: next(given))
    for request, output in zip(requests, outputs, strict=True):
        (step,) = output.outputs[0].logprobs or []
        logits = torch.tensor([step[token].logprob for token in range(len(step))])
        expected = meant.logits(request, "0.2")
        assert cosine_similarity(logits, expected, dim=0) > 0.999
