"""Several replicas, ranks and front ends, the cache in shared memory, and what of this
vLLM itself refuses on a CPU."""

import re
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.server import as_url
from tests.conftest import MakeEngine
from tests.e2e.server import serving
from tests.e2e.test_processes import IMAGES, REQUESTS
from tests.e2e.test_server import OPTIONS
from tests.engine import answers, noise_image, prompt
from tests.front_end import FrontEnd
from tests.processes import (
    ENGINE_APART,
    TWO_RANKS,
    Processes,
    answer,
)

HIRED: dict[str, Any] = {"hf_overrides": {"hired_budget": 0.2}}
MAX_TOKENS = 12

TWO_PROCESSES: dict[str, dict[str, Any]] = {
    # "data", for which vLLM takes "weights" with LLaVA.
    "whole towers": {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"},
    # The tower and the first layers, then the others.
    "stages": {"pipeline_parallel_size": 2},
}


def token_ids(found: dict[str, Any]) -> list[list[int]]:
    return [output["token_ids"] for output in found["outputs"]]


@pytest.mark.matrix
def test_replicas_answer_alike(checkpoint: Path, tmp_path: Path) -> None:
    """Data parallel of two behind two front ends: whichever is asked, the same."""
    (tmp_path / "llava-next").symlink_to(checkpoint)
    cores = TWO_RANKS["VLLM_CPU_OMP_THREADS_BIND"]
    command = (
        f"VLLM_CPU_OMP_THREADS_BIND='{cores}' "
        "vllm serve llava-next --hf-overrides hired_budget=0.2 "
        f"--data-parallel-size 2 --api-server-count 2 {OPTIONS}"
    )
    pictures = [noise_image(*size) for size in ((112, 112), (171, 152), (56, 150))]
    with serving(command, tmp_path, checkpoint) as server:
        text = server.prompt_tokens()
        for picture in pictures:
            said = set()
            for turn in range(8):
                response = server.chat(as_url(picture), cache_salt=f"{turn}").json()
                said.add(response["choices"][0]["message"]["content"])
                tokens = response["usage"]["prompt_tokens"]
                assert tokens == text + server.kept(picture)
            assert len(said) == 1
        shown = requests.get(f"{server.url}/metrics", timeout=60).text
        prompts = re.findall(
            r'^vllm:prompt_tokens_total\{engine="(\d)".*\} (\S+)$', shown, re.M
        )
        assert {engine for engine, count in prompts if float(count) > 0} == {"0", "1"}
        counters = server.counters()
        assert counters["images_total"] == 8 * len(pictures)
        kept = 8 * sum(map(server.kept, pictures))
        assert counters["visual_tokens_kept_total"] == kept


@pytest.mark.matrix
@pytest.mark.parametrize("way", TWO_PROCESSES)
def test_two_ranks_answer_as_one(
    any_checkpoint: Path, make_engine: MakeEngine, way: str
) -> None:
    llm = make_engine(any_checkpoint, hired_budget=0.2)
    alone = answers(llm, [prompt(*sizes) for sizes in IMAGES], MAX_TOKENS)
    with Processes() as processes:
        pair = processes(
            TWO_RANKS,
            answer,
            str(any_checkpoint),
            REQUESTS,
            MAX_TOKENS,
            **TWO_PROCESSES[way],
            **HIRED,
        )
    assert pair["inputs"] == alone["inputs"]
    assert token_ids(pair) == token_ids(alone)


@pytest.mark.matrix
def test_the_processor_cache_in_shared_memory(
    checkpoint: Path, make_engine: MakeEngine
) -> None:
    """Each image twice, the second time out of the cache."""
    llm = make_engine(checkpoint, hired_budget=0.2)
    alone = answers(llm, [prompt(*sizes) for sizes in IMAGES], MAX_TOKENS)
    with Processes() as processes:
        shared = processes(
            ENGINE_APART | {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
            answer,
            str(checkpoint),
            REQUESTS * 2,
            MAX_TOKENS,
            mm_processor_cache_type="shm",
            **HIRED,
        )
    assert token_ids(shared) == token_ids(alone) * 2


def test_sleep_mode_on_a_cpu(checkpoint: Path) -> None:
    """vLLM refuses it before any model is looked at."""
    with pytest.raises(ValueError, match="Sleep mode is not supported on current"):
        FrontEnd(checkpoint, **HIRED, enable_sleep_mode=True)
