"""Is the high resolution worth its tokens? A budget spent on the thumbnail first."""

from fractions import Fraction

from vllm_hired.selectors.hired import HiredSelector


class ThumbnailSelector(HiredSelector):
    """The whole image first; tiles get only what the thumbnail cannot hold."""

    fixed_alpha = Fraction(1)
