"""Encoders and KV caches shared between engines, each in a process of its own."""

from pathlib import Path
from typing import Any

import pytest
from vllm.config import ECTransferConfig

from tests.conftest import MakeEngine
from tests.engine import answers, prompt, start_engine
from tests.processes import STOCK, Processes, Sizes, answer

pytestmark = pytest.mark.matrix

IMAGES: list[Sizes] = [[(112, 112)], [(171, 152)], [(56, 150), (100, 80)]]
MAX_TOKENS = 8
HIRED = {"hired_budget": 0.2}


def role(name: str) -> dict[str, str]:
    """The environment of a process for one engine: vLLM has one connector a process."""
    return {"HIRED_TEST_ENGINES": name}


def answer_and_count(
    model: str, requests: list[tuple[Sizes, float | None]], **options: Any
) -> dict[str, Any]:
    """Of a new engine, one request after another: `token_ids`; `encoded`, how many
    images its tower has encoded for each; `cached`, tokens whose KV it was given."""
    llm = start_engine(model, enable_prefix_caching=False, **options)
    (served,) = llm.apply_model(lambda model: model)
    embed, encoded = served.embed_multimodal, [0]

    def embed_and_count(**kwargs: Any) -> Any:
        rows = embed(**kwargs)
        encoded[-1] += len(rows)
        return rows

    served.embed_multimodal = embed_and_count
    found: dict[str, Any] = {"token_ids": [], "cached": []}
    for sizes, budget in requests:
        sampling = llm.get_default_sampling_params()
        sampling.max_tokens, sampling.temperature = MAX_TOKENS, 0
        sampling.ignore_eos = True
        (output,) = llm.generate([prompt(*sizes, budget=budget)], sampling)
        found["token_ids"].append(list(output.outputs[0].token_ids))
        found["cached"].append(output.num_cached_tokens)
        encoded.append(0)
    return {**found, "encoded": encoded[:-1]}


def encoder(ec_role: str, folder: Path) -> dict[str, Any]:
    """Options of an engine that writes or reads encoded images."""
    shared = {"shared_storage_path": str(folder)}
    return {
        "ec_transfer_config": ECTransferConfig(
            ec_connector="ECExampleConnector",
            ec_role=ec_role,
            ec_connector_extra_config=shared,
        )
    }


def kv_storage(folder: Path) -> dict[str, Any]:
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }


def alone(llm: Any, budget: float | None) -> list[list[int]]:
    """What an engine without connectors answers."""
    asked = [prompt(*sizes, budget=budget) for sizes in IMAGES]
    found = answers(llm, asked, MAX_TOKENS)
    return [output["token_ids"] for output in found["outputs"]]


def test_encoders_apart(
    checkpoint: Path, make_engine: MakeEngine, processes: Processes, tmp_path: Path
) -> None:
    """Two producers, one without the plugin, fill one folder. A consumer takes what
    its like has encoded, encodes the rest itself and answers as if alone."""
    every = [(sizes, None) for sizes in IMAGES]
    plugin = {"hf_overrides": HIRED}
    with Processes() as producers:
        for environment, requests, options in (
            (role("producer"), every[:2], plugin),
            (role("stock producer") | STOCK, every[1:], {}),
        ):
            producers(
                environment,
                answer_and_count,
                str(checkpoint),
                requests,
                **options,
                **encoder("ec_producer", tmp_path),
            )
    # One file an image, and one each of the image that both have encoded.
    assert len([*tmp_path.rglob("*.safetensors")]) == 5
    with Processes() as consumers:
        ours, stocks = (
            consumers(
                environment,
                answer_and_count,
                str(checkpoint),
                every,
                **options,
                **encoder("ec_consumer", tmp_path),
            )
            for environment, options in (
                (role("consumer"), plugin),
                (role("stock consumer") | STOCK, {}),
            )
        )
    assert ours["encoded"] == [0, 0, 2]
    assert ours["token_ids"] == alone(make_engine(checkpoint, **HIRED), None)
    assert stocks["encoded"] == [1, 0, 0]
    stock = processes(STOCK, answer, str(checkpoint), every, MAX_TOKENS)["outputs"]
    assert stocks["token_ids"] == [output["token_ids"] for output in stock]


READERS: dict[str, tuple[str, dict[str, Any], float | None, bool]] = {
    "an engine of the same budget": ("ExampleConnector", HIRED, None, True),
    "a request of the same budget": (
        "MultiConnector",
        {"hired_budget": 0.1, "hired_max_budget": 0.2},
        0.2,
        True,
    ),
    "another budget": ("ExampleConnector", {"hired_budget": 0.1}, None, False),
    # As many tokens, others.
    "another method": (
        "MultiConnector",
        HIRED | {"hired_selector": "even"},
        None,
        False,
    ),
}
"""A connector, an engine's settings, a request's budget, and whether it may use the KV
cache of an engine with `HIRED`."""


def test_kv_caches_in_shared_storage(
    checkpoint: Path, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Whoever keeps the same tokens reads them; all answer as if alone."""
    storage = kv_storage(tmp_path / "shared")
    several = [kv_storage(tmp_path / "another"), storage]
    connectors = {
        "ExampleConnector": storage,
        "MultiConnector": {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"connectors": several},
        },
    }
    with Processes() as processes:

        def ask(name: str, reader: str) -> Any:
            connector, settings, budget, _ = READERS[reader]
            return processes(
                role(name),
                answer_and_count,
                str(checkpoint),
                [(sizes, budget) for sizes in IMAGES],
                hf_overrides=settings,
                kv_transfer_config=connectors[connector],
            )

        writer = ask("writer", "an engine of the same budget")
        assert writer["cached"] == [0, 0, 0]
        for name, (_, settings, budget, is_hit) in READERS.items():
            reader = ask(name, name)
            assert [tokens > 0 for tokens in reader["cached"]] == [is_hit] * 3, name
            expected = alone(make_engine(checkpoint, **settings), budget)
            assert reader["token_ids"] == expected, name
