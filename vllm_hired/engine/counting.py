"""Counts the images of the requests that a front end has processed, for `/metrics`."""

from collections.abc import Iterable, Mapping
from typing import Any

from cachetools import LRUCache
from vllm.inputs import MultiModalInput
from vllm.logger import init_logger

from vllm_hired.engine.inputs import item_layout
from vllm_hired.engine.metrics import metrics

# Under "vllm", where vLLM has set up its handlers.
logger = init_logger(f"vllm.{__name__}")

MOST_REMEMBERED = 100_000
"""Images whose stock count is remembered: more than vLLM's cache of them holds."""


class ImageCounter:
    """Counts what a request's images keep, and what stock vLLM would have kept.

    The stock count is that of the image whose embeddings are used. vLLM hands out an
    image's data once; later the image is in its cache, and its count in ours. An error
    is logged, since a counter must never cost anyone an answer.

    Args:
        hf_config: of the model.
    """

    def __init__(self, hf_config: Any) -> None:
        self._hf_config = hf_config
        self._stock_counts: LRUCache[str, int] = LRUCache(MOST_REMEMBERED)
        metrics()  # From here on `/metrics` shows the counters, at zero.

    def remember(
        self, hashes: Iterable[str], items: Iterable[Mapping[str, Any] | None]
    ) -> None:
        """Notes the stock counts of images of which tokens may be dropped."""
        try:
            for mm_hash, item in zip(hashes, items, strict=True):
                if item is not None and "num_kept" in item:
                    layout = item_layout(self._hf_config, item)
                    self._stock_counts[mm_hash] = layout.num_stock_tokens
        except Exception:
            logger.exception("vllm_hired could not look at the images of a request")

    def count(self, result: MultiModalInput) -> None:
        """Counts the images of one processed request."""
        hashes, items, ranges = (
            result[key].get("image", ())
            for key in ("mm_hashes", "mm_kwargs", "mm_placeholders")
        )
        self.remember(hashes, items)
        try:
            for mm_hash, kept in zip(hashes, ranges, strict=True):
                count = kept.get_num_embeds()
                metrics().count_image(count, self._stock_counts.get(mm_hash, count))
        except Exception:
            logger.exception("vllm_hired could not count the images of a request")
