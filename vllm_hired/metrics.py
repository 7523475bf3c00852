"""Prometheus counters on the server's own `/metrics`: images, tokens kept and dropped.

An image counts when its request is admitted, once a request that carries it: from a
cache too, but neither when vLLM profiles nor when the request is refused. The front
end says what stock vLLM would have handed to the LLM, the admitted request what is.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from prometheus_client import Counter, Histogram
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor

MOST_REMEMBERED = 100_000
"""Images whose stock count is remembered: more than wait for admission, or lie in a
cache where a client can name them by their uuid alone."""

_stock_tokens: OrderedDict[str, int] = OrderedDict()


@dataclass(frozen=True)
class Metrics:
    """Of one process. Not prefixed `vllm:`, which vLLM unregisters."""

    images: Counter
    kept: Counter
    dropped: Counter
    kept_per_image: Histogram


@cache
def metrics() -> Metrics:
    """Made when first asked for, at zero: once vLLM has decided whether several API
    server processes share a folder of counters."""
    return Metrics(
        Counter("vllm_hired_images", "Images of admitted requests."),
        Counter("vllm_hired_visual_tokens_kept", "Visual tokens handed to the LLM."),
        Counter(
            "vllm_hired_visual_tokens_dropped",
            "Visual tokens that stock vLLM would have handed to the LLM beside these.",
        ),
        Histogram(
            "vllm_hired_kept_tokens_per_image",
            "Visual tokens of an image handed to the LLM.",
            buckets=(64, 128, 192, 288, 384, 576, 768, 1152, 1536, 2304, 2880),
        ),
    )


def remember_stock_tokens(counts: Iterable[tuple[str, int]]) -> None:
    """(vLLM's hash of an image, visual tokens without dropping), before admission."""
    for mm_hash, count in counts:
        _stock_tokens[mm_hash] = count
        _stock_tokens.move_to_end(mm_hash)
    while len(_stock_tokens) > MOST_REMEMBERED:
        _stock_tokens.popitem(last=False)


def count_images(features: Iterable[MultiModalFeatureSpec]) -> None:
    """Counts the images of an admitted request; those of other models are unknown."""
    for feature in features:
        stock = _stock_tokens.get(feature.mm_hash or "")
        if stock is None:
            continue
        kept = feature.mm_position.get_num_embeds()
        metrics().images.inc()
        metrics().kept.inc(kept)
        metrics().dropped.inc(stock - kept)
        metrics().kept_per_image.observe(kept)


@cache
def count_admitted_images() -> None:
    """Wraps `OutputProcessor.add_request`, once, where vLLM's front end registers what
    it has admitted. From here on `/metrics` shows the counters, at zero."""
    metrics()
    upstream = OutputProcessor.add_request

    @wraps(upstream)
    def add_request(
        self: OutputProcessor,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        upstream(self, request, prompt, parent_req, request_index, *args, **kwargs)
        # With n > 1 one request comes n times.
        if request_index == 0:
            count_images(request.mm_features or ())

    OutputProcessor.add_request = add_request
