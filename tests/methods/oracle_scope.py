"""SCOPE (arXiv 2510.24214): greedy gain of coverage times saliency to the alpha."""

from collections.abc import Callable

from tests.methods.oracle_image import Cell, Image, cosine, equal_quotas


def steps(
    image: Image,
    kept: int,
    features: list[list[list[float]]],
    attention: list[list[float]],
    alpha: float,
    pick: Callable[[dict[Cell, float]], Cell],
) -> set[Cell]:
    """`pick` sees at each step the score of every candidate of one partition."""
    chosen: set[Cell] = set()
    for partition, quota in enumerate(equal_quotas(image, kept)):
        valid = image.valid(partition)
        vectors = features[partition]
        alike = {
            (i, j): cosine(vectors[i], vectors[j]) if i != j else float(any(vectors[i]))
            for i in valid
            for j in valid
        }
        own: set[int] = set()
        for _ in range(quota):
            scores = {}
            for i in valid:
                if i not in own:
                    gain = 0.0
                    for j in valid:
                        covered = max([0.0, *(alike[s, j] for s in own)])
                        gain += max(0.0, alike[i, j] - covered)
                    # The scale of saliency is the same for all of a partition.
                    greatest = max(attention[partition])
                    scores[partition, i] = (
                        gain * (attention[partition][i] / greatest) ** alpha
                    )
            own.add(pick(scores)[1])
        chosen |= {(partition, cell) for cell in own}
    return chosen
