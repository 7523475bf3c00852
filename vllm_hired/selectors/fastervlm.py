"""FasterVLM (Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual
Token Pruning", arXiv 2412.01818 version 1; later versions are VisPruner)."""

from fractions import Fraction

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.even import EvenSelector


class FasterVLMSelector(EvenSelector):
    """Late attention ranks patches; thumbnail and tiles get the same count.

    In each partition the cells with the highest final-layer [CLS] attention stay. The
    paper averages it over heads where we sum, which ranks alike.

    Scope: per partition. Quotas: `floor(K / P)` for the thumbnail and the rest in equal
    parts among the tiles, none above its valid cells; what a tile cannot hold goes to
    the other tiles, then to the thumbnail. Needs the final attention. Costs one sort of
    each partition.

    The authors' code ranks padding, too, and drops it afterwards, so that its count
    depends on the content. Here padding is never a candidate.
    """

    uses_alpha = False

    def thumbnail_share(self, layout: Layout, alpha: Fraction) -> Fraction:
        return Fraction(1, layout.num_partitions)
