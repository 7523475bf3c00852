"""A budget for each image: from a request to its images' hashes and counts.

vLLM hashes one set of processor arguments into all items of a request. Here each image
is hashed as in a request of its own budget, and everything else as without a budget.
The budgets travel with the images, because vLLM processes only those that its cache
lacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

from typing_extensions import override
from vllm.inputs import MultiModalHashes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs

from vllm_hired.config import HiredConfig
from vllm_hired.errors import HiredConfigError

IMAGE_BUDGETS = "hired_image_budgets"
"""Among processor kwargs, on the way from an image's budget to its count."""


class BudgetedItems(MultiModalDataItems):
    """Items of a request, and of each image the budget."""

    def __init__(
        self, items: Mapping[str, Any], image_budgets: Sequence[Fraction]
    ) -> None:
        super().__init__(items)
        self.image_budgets = [*image_budgets]


class SomeItems(ModalityDataItems[Any, Any]):
    """Some of the items of a modality, for their hashes."""

    def __init__(
        self, items: ModalityDataItems[Any, Any], places: Sequence[int]
    ) -> None:
        super().__init__(items.data, items.modality)
        self.items, self.places = items, places

    def get_count(self) -> int:
        return len(self.places)

    def get(self, index: int) -> Any:
        return self.items.get(self.places[index])

    def get_item_for_hash(self, index: int) -> object:
        return self.items.get_item_for_hash(self.places[index])

    def get_processor_data(self) -> Mapping[str, object]:
        return {}

    def get_passthrough_data(self) -> Mapping[str, object]:
        return {}


@dataclass
class BudgetedInputs(ProcessorInputs):
    """A request whose images have budgets.

    Attributes:
        image_keys: per image what of its budget enters its hash; empty where nothing
            may be dropped.
    """

    image_keys: Sequence[Mapping[str, object]] = field(default_factory=list)

    @override
    def get_mm_hashes(self, model_id: str, hash_algorithm: Any) -> MultiModalHashes:
        """That of an image depends on its own budget alone, and those of other
        modalities on none."""
        others = {m: items for m, items in self.mm_data_items.items() if m != "image"}
        plain = ProcessorInputs(
            **(_fields(self) | {"mm_data_items": MultiModalDataItems(others)})
        )
        hashes: dict[str, list[str]] = {}
        if others:
            hashes |= plain.get_mm_hashes(model_id, hash_algorithm)
        images = self.mm_data_items["image"]
        by_place: dict[int, str] = {}
        for key in _distinct(self.image_keys):
            places = [i for i, own in enumerate(self.image_keys) if own == key]
            alike = replace(
                plain,
                mm_data_items=self.mm_data_items,
                hf_processor_mm_kwargs={**self.hf_processor_mm_kwargs, **key},
            )
            found = image_hashes(alike, places, model_id, hash_algorithm)
            by_place |= zip(places, found, strict=True)
        hashes["image"] = [by_place[place] for place in range(len(images))]
        return hashes


def image_hashes(
    inputs: ProcessorInputs,
    places: Sequence[int],
    model_id: str,
    hash_algorithm: Any,
) -> list[str]:
    """vLLM's hashes of some images of a request, as if it had no others.

    Args:
        inputs: of the request.
        places: of the images among its images.
        model_id: as vLLM hashes it.
        hash_algorithm: likewise.
    """
    images = inputs.mm_data_items["image"]
    uuids = (inputs.mm_uuid_items or {}).get("image") or [None] * len(images)
    some = replace(
        inputs,
        mm_data_items=MultiModalDataItems({"image": SomeItems(images, places)}),
        mm_uuid_items={"image": [uuids[place] for place in places]},
    )
    hashes: list[str] = some.get_mm_hashes(model_id, hash_algorithm)["image"]
    return hashes


def _fields(inputs: ProcessorInputs) -> dict[str, Any]:
    return {own.name: getattr(inputs, own.name) for own in fields(ProcessorInputs)}


def _distinct(keys: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    return [key for place, key in enumerate(keys) if key not in keys[:place]]


def with_budgets(
    inputs: ProcessorInputs, hired: HiredConfig, budgets: Sequence[Fraction]
) -> BudgetedInputs:
    """A request with a budget for each of its images."""
    given = _fields(inputs)
    given["mm_data_items"] = BudgetedItems(inputs.mm_data_items, budgets)
    keys = [hired.cache_key(b) if hired.is_active(b) else {} for b in budgets]
    return BudgetedInputs(**given, image_keys=keys)


def places_without_budget(requested: object, num_images: int) -> list[int]:
    """The images for which a request, as `image_budgets` takes it, asks for none."""
    if isinstance(requested, (list, tuple)):
        return [place for place, value in enumerate(requested) if value is None]
    return [*range(num_images)] if requested is None else []


def image_budgets(
    hired: HiredConfig, requested: object, num_images: int
) -> list[Fraction]:
    """The budget of each image of a request.

    Args:
        hired: the engine's settings.
        requested: a number, or a list with one for each image; None is the default.
        num_images: of the request.

    Raises:
        HiredConfigError: a number that `HiredConfig.request_budget` refuses, or as many
            as there are no images.
    """
    if not isinstance(requested, (list, tuple)):
        return [hired.request_budget(requested)] * num_images
    if len(requested) != num_images:
        raise HiredConfigError(
            "hired_budget",
            requested,
            f"this request has {num_images} images; ask for a number in "
            f"(0, {float(hired.max_budget)}], or for a list of as many as there are "
            "images",
        )
    return [hired.request_budget(value) for value in requested]


ALMOST_ALL = Fraction("0.999999")
"""A budget at which an image loses a token, if it has fewer than a million."""


@dataclass
class DummyInputs(ProcessorInputs):
    """Of vLLM's own profiling, which no counter shall see."""


def dummy_budget(hired: HiredConfig) -> Fraction:
    """`hired_max_budget`, the most that a request can ask for.

    Where that is 1.0 and images lose tokens by default, the dummy image loses one, so
    that what dropping needs is part of the memory that vLLM measures.
    """
    if min(hired.defaults) < 1:
        return min(hired.max_budget, ALMOST_ALL)
    return hired.max_budget
