"""Is the high resolution worth its tokens? A budget spent on the thumbnail first."""

from fractions import Fraction

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.hired import HiredSelector


class ThumbnailSelector(HiredSelector):
    """The whole image first; tiles get only what the thumbnail cannot hold."""

    uses_alpha = False

    def thumbnail_share(self, layout: Layout, alpha: Fraction) -> Fraction:
        return Fraction(1)
