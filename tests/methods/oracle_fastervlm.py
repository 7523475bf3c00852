"""FasterVLM (arXiv 2412.01818 v1): top [CLS] attention, as many in each partition."""

from tests.methods.oracle_image import Cell, Image, best, equal_quotas


def select(image: Image, kept: int, attention: list[list[float]]) -> set[Cell]:
    chosen = set()
    for partition, quota in enumerate(equal_quotas(image, kept)):
        for cell in best(attention[partition], image.valid(partition), quota):
            chosen.add((partition, cell))
    return chosen
