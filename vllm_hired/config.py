"""The settings of HiRED: read once from the HF config, validated, immutable."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from types import NoneType
from typing import Any

from vllm_hired.errors import PREFIX, HiredConfigError
from vllm_hired.selectors import read_method, selector_names
from vllm_hired.towers import tower_of
from vllm_hired.towers.support import (
    ranking_layers,
    unsupported_tower,
)
from vllm_hired.values import (
    read_budget,
    read_count,
    read_flag,
    read_fraction,
    read_layer,
    read_name,
)

OBSTACLE = "_hired_obstacle"
"""Attribute of an HF config, by which every process of an engine learns why no budget
can be honoured: the arguments of a `HiredConfigError`."""

ALGORITHM_VERSION = 2
"""Raised whenever the same settings keep other tokens than before, so that a cache
that outlives an upgrade never mixes the two."""


@dataclass(frozen=True)
class HiredConfig:
    """Settings of one engine.

    Attributes:
        budget: `rho`, the default fraction of an image's visual tokens to keep.
        max_budget: largest `rho` that a request may ask for; what vLLM profiles.
        detail_low: budget of an image whose `image_url.detail` is "low", or None for
            the default.
        detail_high: likewise of "high".
        adaptive: whether images for which nobody asks for a budget get one between
            `budget` and `max_budget`, by the load; see `vllm_hired.adaptive`.
        adaptive_queue: waiting requests for each step down from `max_budget`.
        token_cap: most visual tokens of any image, or None.
        alpha: share of the budget given to the thumbnail.
        init_layer: tower layer whose attention distributes the budget among tiles.
        final_layer: tower layer whose attention ranks the tokens. By default the last
            that can, whose output the projector or merger gets; the paper found it best
            for CLIP, and nobody has compared layers of Qwen's towers here. For [CLS]
            attention in InternVL the last but one; see `Tower.last_cls_layer`.
        selector: a name among `vllm_hired.selectors.selector_names()`.
        attention: which attention ranks cells, a name in `ATTENTIONS`.
        method: version and settings of the selector, as `read_method` gives them.
        unsupported: why this model or engine drops nothing, as the arguments of a
            `HiredConfigError`, or None.
    """

    budget: Fraction
    max_budget: Fraction
    detail_low: Fraction | None
    detail_high: Fraction | None
    adaptive: bool
    adaptive_queue: int
    token_cap: int | None
    alpha: Fraction
    init_layer: int
    final_layer: int
    selector: str
    attention: str
    method: tuple[tuple[str, float], ...]
    unsupported: tuple[str, object, str] | None

    @classmethod
    def from_hf_config(cls, hf_config: Any) -> "HiredConfig":
        """Reads the `hired_*` attributes that `--hf-overrides` put on `hf_config`.

        Raises:
            HiredConfigError: an unknown key, a value outside what is allowed, or
                settings on a model whose tower HiRED cannot use.
        """
        given = given_settings(hf_config)
        unsupported = getattr(hf_config, OBSTACLE, None) or unsupported_tower(hf_config)
        if unsupported is not None and given:
            raise HiredConfigError(*unsupported)

        budget = read_budget(given.get("hired_budget", 1))
        max_budget = read_budget(
            given.get("hired_max_budget", budget), "hired_max_budget"
        )
        if budget > max_budget:
            raise HiredConfigError(
                "hired_budget",
                float(budget),
                f"it must not exceed hired_max_budget={float(max_budget)} "
                "(an unset hired_budget is 1.0)",
            )
        details = {
            key: None if given.get(key) is None else read_budget(given[key], key)
            for key in ("hired_detail_low", "hired_detail_high")
        }
        for key, detail in details.items():
            if detail is not None and detail > max_budget:
                raise HiredConfigError(
                    key,
                    float(detail),
                    f"it must not exceed hired_max_budget={float(max_budget)}",
                )
        adaptive = read_flag("hired_adaptive", given.get("hired_adaptive", False))
        if adaptive and budget == max_budget:
            raise HiredConfigError(
                "hired_adaptive",
                True,
                "it needs a hired_max_budget, the budget without load, above "
                f"hired_budget={float(budget)}, the least under load",
            )
        queue = given.get("hired_adaptive_queue", 4)
        adaptive_queue = read_count("hired_adaptive_queue", queue)
        if not adaptive and "hired_adaptive_queue" in given:
            raise HiredConfigError(
                "hired_adaptive_queue",
                queue,
                "it means something with hired_adaptive=true alone",
            )
        # A tower that HiRED cannot use may have no layers to count.
        layers = [] if unsupported else ranking_layers(hf_config)
        selector = read_name(
            "hired_selector", given.get("hired_selector", "hired"), selector_names()
        )
        own = {key: value for key, value in given.items() if key not in SETTINGS}
        tower = tower_of(hf_config)
        attention = read_name(
            "hired_attention", given.get("hired_attention", tower.attention), ATTENTIONS
        )
        last = tower.last_cls_layer if attention == "cls" else -1
        return cls(
            budget=budget,
            max_budget=max_budget,
            detail_low=details["hired_detail_low"],
            detail_high=details["hired_detail_high"],
            adaptive=adaptive,
            adaptive_queue=adaptive_queue,
            token_cap=read_count("hired_token_cap", given["hired_token_cap"])
            if "hired_token_cap" in given
            else None,
            alpha=read_fraction(
                "hired_alpha", given.get("hired_alpha", 0.5), "a number in [0, 1]"
            ),
            init_layer=read_layer("hired_init_layer", given, 0, layers),
            final_layer=read_layer("hired_final_layer", given, last, layers),
            selector=selector,
            attention=attention,
            method=read_method(selector, own, SETTINGS),
            unsupported=unsupported,
        )

    @property
    def defaults(self) -> list[Fraction]:
        """The budgets of images for which a request asks for no number."""
        details = [d for d in (self.detail_low, self.detail_high) if d is not None]
        return [self.budget, *details]

    @property
    def drops_by_default(self) -> bool:
        """Whether an image may lose tokens though its request asks for no number."""
        return any(map(self.is_active, self.defaults))

    @property
    def has_details(self) -> bool:
        """Whether `image_url.detail` means anything."""
        return len(self.defaults) > 1

    def detail_budget(self, detail: object) -> Fraction | None:
        """The budget of an image with this `image_url.detail`; None for the default.

        Raises:
            HiredConfigError: a detail that OpenAI's API does not have.
        """
        budgets = {
            None: None,
            "auto": None,
            "low": self.detail_low,
            "high": self.detail_high,
            "original": self.max_budget,
        }
        if not isinstance(detail, (str, NoneType)) or detail not in budgets:
            raise HiredConfigError(
                "image_url.detail",
                detail,
                'it must be "low", "high", "auto" or "original"',
            )
        return budgets[detail]

    def is_active(self, budget: Fraction) -> bool:
        """Whether images may lose tokens at `budget`; if not, the path is stock."""
        return budget < 1 or self.token_cap is not None

    def request_budget(self, value: object) -> Fraction:
        """The budget of a request that asks for `value` (None: the default).

        Raises:
            HiredConfigError: not a number in (0, hired_max_budget], or the tower
                cannot be used.
        """
        budget = self.budget if value is None else read_budget(value)
        if budget > self.max_budget:
            raise HiredConfigError(
                "hired_budget",
                value,
                "the engine was started with "
                f"hired_max_budget={float(self.max_budget)}; ask for a number in "
                f"(0, {float(self.max_budget)}]",
            )
        if self.unsupported is not None and self.is_active(budget):
            raise HiredConfigError(*self.unsupported)
        return budget

    def cache_key(self, budget: Fraction) -> dict[str, object]:
        """All that decides which tokens are kept, for vLLM's hash of an image."""
        settings: dict[str, object] = {
            "token_cap": self.token_cap,
            "alpha": self.alpha,
            "init_layer": self.init_layer,
            "final_layer": self.final_layer,
            "selector": self.selector,
        }
        # Later settings are named only where they are used, so that the hashes of
        # images that do not use them stay what they were.
        if self.attention != "cls":
            settings["attention"] = self.attention
        settings |= self.method
        return {
            "hired_budget": float(budget),
            "hired_algorithm": f"{ALGORITHM_VERSION} "
            + " ".join(f"{name}={value}" for name, value in settings.items()),
        }


ATTENTIONS = ("cls", "received")
"""What ranks cells: attention that [CLS] pays them, or that they get from all."""

SETTINGS = tuple(
    PREFIX + field.name
    for field in fields(HiredConfig)
    if field.name not in ("method", "unsupported")
)
"""Keys that are not a method's own."""


def given_settings(hf_config: Any) -> dict[str, Any]:
    """The `hired_*` attributes of an HF config that are not None.

    Raises:
        HiredConfigError: a nested config, such as `text_config`, holds one, where
            nothing would read it.
    """
    for name, nested in vars(hf_config).items():
        if not name.endswith("_config"):
            continue
        inner = (
            nested if isinstance(nested, Mapping) else getattr(nested, "__dict__", {})
        )
        for key, value in inner.items():
            if key.startswith(PREFIX) and value is not None:
                raise HiredConfigError(
                    f"{name}.{key}",
                    value,
                    "settings belong to the top level of the model's config, as in "
                    f"--hf-overrides {key}={value}",
                )
    return {
        key: value
        for key, value in vars(hf_config).items()
        if key.startswith(PREFIX) and value is not None
    }


def refuse_settings_among(processor_kwargs: Mapping[str, object] | None) -> None:
    """Refuses `hired_*` keys in an engine's `mm_processor_kwargs`.

    Raises:
        HiredConfigError
    """
    for key in setting_keys(processor_kwargs or {}):
        raise HiredConfigError(
            "mm_processor_kwargs",
            processor_kwargs,
            f"{key} of an engine is given by --hf-overrides, for instance "
            "--hf-overrides hired_budget=0.2",
        )


def setting_keys(processor_kwargs: Mapping[str, object]) -> list[str]:
    """Our keys among processor kwargs, also inside `images_kwargs` and the like."""
    nested = [v for v in processor_kwargs.values() if isinstance(v, Mapping)]
    scopes = [processor_kwargs, *nested]
    return [key for scope in scopes for key in scope if key.startswith(PREFIX)]
