"""Settings: what is read, what is refused, and how the refusal reads."""

import pickle
from fractions import Fraction
from typing import Any

import pytest
from transformers import LlavaNextConfig, PixtralVisionConfig, SiglipVisionConfig

from random_checkpoints.llava import make_config, make_tokenizer, small
from vllm_hired.config import SETTINGS, HiredConfig
from vllm_hired.errors import HiredConfigError

NAN, INFINITY = float("nan"), float("inf")


def hf_config(**overrides: Any) -> LlavaNextConfig:
    """A tower of 4 layers, of which layers 0, 1 and 2 run."""
    config = make_config(small(), make_tokenizer())
    config.update(overrides)
    return config


def test_defaults_are_the_papers() -> None:
    config = HiredConfig.from_hf_config(hf_config(hired_budget=0.2))
    assert config == HiredConfig(
        budget=Fraction(1, 5),
        max_budget=Fraction(1, 5),
        detail_low=None,
        detail_high=None,
        adaptive=False,
        adaptive_queue=4,
        token_cap=None,
        alpha=Fraction(1, 2),
        init_layer=0,
        final_layer=2,
        selector="hired",
        attention="cls",
        method=(),
        unsupported=None,
    )
    assert config.is_active(config.budget)


def test_without_settings_nothing_is_dropped_unless_a_request_asks() -> None:
    config = HiredConfig.from_hf_config(hf_config())
    assert not config.is_active(config.request_budget(None))
    assert config.is_active(config.request_budget(0.5))
    assert config.request_budget(1) == 1


def test_all_settings_are_read() -> None:
    given = {
        "hired_budget": 0.25,
        "hired_max_budget": 1,
        "hired_detail_low": 0.1,
        "hired_detail_high": 0.5,
        "hired_adaptive": True,
        "hired_adaptive_queue": 2,
        "hired_token_cap": 100,
        "hired_alpha": 0,
        "hired_init_layer": 1,
        "hired_final_layer": 1,
        "hired_selector": "hired",
        "hired_attention": "received",
    }
    assert set(given) == set(SETTINGS)
    config = HiredConfig.from_hf_config(hf_config(**given))
    assert (config.budget, config.max_budget) == (Fraction(1, 4), Fraction(1))
    assert (config.detail_low, config.detail_high) == (Fraction("0.1"), Fraction("0.5"))
    assert (config.adaptive, config.adaptive_queue) == (True, 2)
    assert config.token_cap == 100
    assert config.alpha == 0
    assert (config.init_layer, config.final_layer) == (1, 1)


NUMBERS_REFUSED = [True, NAN, INFINITY, -INFINITY, -0.1, 1.1, "0.2", "half", [0.2], {}]
# JSON has whole numbers that no float can hold.
NUMBERS_REFUSED += [10**400, -(10**400)]


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        *(("hired_budget", value, r"\(0, 1\]") for value in [0, 0.0, *NUMBERS_REFUSED]),
        *(("hired_max_budget", v, r"\(0, 1\]") for v in [0, *NUMBERS_REFUSED]),
        *(("hired_alpha", value, r"\[0, 1\]") for value in NUMBERS_REFUSED),
        *(("hired_adaptive", v, "true or false") for v in [1, 0.5, "yes", "True", []]),
        *(("hired_adaptive_queue", v, "from 1 up") for v in [0, -1, 2.0, True, "4"]),
        *(("hired_token_cap", v, "from 1 up") for v in [0, -1, 1.5, True, "9", NAN]),
        *(("hired_init_layer", v, "layers 0 to 2") for v in [3, -1, 0.0, True, "0"]),
        *(("hired_final_layer", v, "layers 0 to 2") for v in [3, -1, 0.0, True, "0"]),
        *(("hired_selector", v, "one of hired") for v in ["best", "", 3, ["hired"]]),
        ("hired_selector", "unifrom", "must be one of uniform, hired"),
        *(("hired_attention", v, "one of cls, received") for v in ["CLS", True, 1]),
        ("hired_budgte", 0.2, "known settings are hired_budget, hired_max_budget"),
    ],
)
def test_bad_settings_name_setting_value_and_what_is_allowed(
    setting: str, value: object, allowed: str
) -> None:
    with pytest.raises(HiredConfigError, match=allowed) as refusal:
        HiredConfig.from_hf_config(hf_config(**{setting: value}))
    assert refusal.value.setting == setting
    assert str(refusal.value).startswith(f"{setting}={value!r}")


@pytest.mark.parametrize(
    "given",
    [{"hired_budget": 0.4, "hired_max_budget": 0.2}, {"hired_max_budget": 0.2}],
)
def test_default_above_the_maximum(given: dict[str, float]) -> None:
    with pytest.raises(HiredConfigError, match=r"hired_max_budget=0\.2"):
        HiredConfig.from_hf_config(hf_config(**given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"hired_budget=1\.0, the least under load"),
        ({"hired_budget": 0.2}, r"above hired_budget=0\.2"),
        ({"hired_budget": 0.2, "hired_max_budget": 0.2}, r"above hired_budget=0\.2"),
        ({"hired_adaptive": None, "hired_adaptive_queue": 4}, "hired_adaptive=true"),
        ({"hired_adaptive": False, "hired_adaptive_queue": 4}, "hired_adaptive=true"),
    ],
)
def test_adaptive_settings_that_mean_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(HiredConfigError, match=said):
        HiredConfig.from_hf_config(hf_config(**({"hired_adaptive": True} | given)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_config": SiglipVisionConfig()}, 'must be "full"'),
        ({"vision_config": PixtralVisionConfig()}, "can read the towers clip_vision"),
        ({"vision_feature_select_strategy": "full"}, 'must be "default"'),
        ({"vision_feature_layer": [-2, -3]}, "not a list of layers"),
        ({"vision_feature_layer": -5}, "no layer of the vision tower runs"),
    ],
)
def test_towers_that_cannot_be_used(changes: dict[str, Any], said: str) -> None:
    """Refused with settings; served untouched without, until a request asks."""
    with pytest.raises(HiredConfigError, match=said):
        HiredConfig.from_hf_config(hf_config(hired_budget=0.2, **changes))
    stock = HiredConfig.from_hf_config(hf_config(**changes))
    assert stock.request_budget(None) == 1
    with pytest.raises(HiredConfigError, match=said) as refusal:
        stock.request_budget(0.2)
    # It may come from a process that only sends it on.
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)


@pytest.mark.parametrize("value", [0, 0.5, *NUMBERS_REFUSED])
def test_request_budgets_refused(value: object) -> None:
    config = HiredConfig.from_hf_config(
        hf_config(hired_budget=0.2, hired_max_budget=0.4)
    )
    with pytest.raises(HiredConfigError, match=r"\(0, (1|0.4)\]"):
        config.request_budget(value)


def test_cache_key_tells_apart_all_that_decides_what_is_kept() -> None:
    base = {"hired_budget": 0.2}
    changes: list[dict[str, Any]] = [
        {},
        {"hired_budget": 0.4},
        {"hired_token_cap": 9},
        {"hired_alpha": 0.4},
        {"hired_init_layer": 1},
        {"hired_final_layer": 1},
        {"hired_selector": "even"},
        {"hired_attention": "received"},
    ]
    keys = []
    for change in changes:
        config = HiredConfig.from_hf_config(hf_config(**(base | change)))
        keys.append(config.cache_key(config.budget))
    assert all(keys.count(key) == 1 for key in keys)
    for policy in ({}, {"hired_adaptive": True}):
        raised = HiredConfig.from_hf_config(
            hf_config(**base, **policy, hired_max_budget=1.0)
        )
        assert raised.cache_key(raised.budget) == keys[0]
