"""Prometheus counters on the server's own `/metrics`: images, tokens kept and dropped.

An image counts when the front end has processed a request that carries it, once a
request, from a cache too. A request that is refused later, because its images make it
too long for instance, has counted. vLLM's own dummy images do not.
"""

from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Histogram


@dataclass(frozen=True)
class Metrics:
    """Of one process. Not prefixed `vllm:`, which vLLM unregisters."""

    images: Counter
    kept: Counter
    dropped: Counter
    kept_per_image: Histogram

    def count_image(self, kept: int, stock: int) -> None:
        """One image.

        Args:
            kept: visual tokens handed to the LLM.
            stock: those that stock vLLM would have handed to it.
        """
        self.images.inc()
        self.kept.inc(kept)
        # A counter refuses to fall.
        self.dropped.inc(max(stock - kept, 0))
        self.kept_per_image.observe(kept)


@cache
def adaptive_images() -> Counter:
    """Made like `metrics`, and only where `hired_adaptive` is on."""
    return Counter(
        "vllm_hired_adaptive_images",
        "Images whose budget the load chose, by the budget that it chose.",
        ["budget"],
    )


@cache
def metrics() -> Metrics:
    """Made when first asked for, at zero: once vLLM has decided whether several API
    server processes share a folder of counters."""
    return Metrics(
        Counter("vllm_hired_images", "Images of processed requests."),
        Counter("vllm_hired_visual_tokens_kept", "Visual tokens handed to the LLM."),
        Counter(
            "vllm_hired_visual_tokens_dropped",
            "Visual tokens that stock vLLM would have handed to the LLM beside these.",
        ),
        Histogram(
            "vllm_hired_kept_tokens_per_image",
            "Visual tokens of an image handed to the LLM.",
            buckets=(
                *(64, 128, 192, 288, 384, 576, 768, 1152, 1536, 2304, 2880),
                # Whole images of InternVL and Qwen-VL.
                *(4096, 8192, 16384),
            ),
        ),
    )
