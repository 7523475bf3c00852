"""The whole image first; tiles get only what the thumbnail cannot hold."""

from fractions import Fraction

from vllm_hired.selectors.hired import HiredSelector


class ThumbnailSelector(HiredSelector):
    fixed_alpha = Fraction(1)
