"""The paper's eight benchmarks as lmms-eval has them, and the paper's figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        title: as the paper calls it.
        folder: of lmms-eval's task files.
        metric: lmms-eval's name of what the paper reports.
        scale: from lmms-eval's figure to the paper's.
        lite: lmms-eval's smaller version of 500 questions, or "" where it has none.
        lite_limit: how many of the first questions `--lite` asks where it has none;
            None is all.
    """

    title: str
    folder: str
    metric: str
    scale: float = 100.0
    lite: str = ""
    lite_limit: int | None = None


TASKS = {
    "vqav2_val": Task("VQAv2", "vqav2", "exact_match", lite="vqav2_val_lite"),
    "scienceqa_img": Task("ScienceQA", "scienceqa", "exact_match", lite_limit=500),
    "textvqa_val": Task("TextVQA", "textvqa", "exact_match", lite="textvqa_val_lite"),
    "docvqa_val": Task("DocVQA", "docvqa", "anls", lite="docvqa_val_lite"),
    # Its 1,000 and MME's 2,374 questions are ordered by kind: a part would be another
    # benchmark.
    "ocrbench": Task("OCRBench", "ocrbench", "ocrbench_accuracy", scale=1000.0),
    "mme": Task("MME", "mme", "mme_perception_score", scale=1.0),
    "pope": Task("POPE", "pope", "pope_accuracy", lite_limit=500),
    "chartqa": Task("ChartQA", "chartqa", "relaxed_overall", lite="chartqa_lite"),
}
"""lmms-eval's task -> what the paper reports of it, in the paper's order."""

PAPER = {
    ("7b", 1.0): (80.3, 73.2, 64.8, 73.4, 501, 1519, 87.6, 54.8),
    ("7b", 0.4): (78.8, 73.8, 63.6, 68.7, 488, 1474, 88.2, 46.5),
    ("7b", 0.2): (77.5, 73.4, 61.4, 60.8, 475, 1483, 87.0, 42.0),
    ("13b", 1.0): (80.9, 73.6, 66.9, 77.5, 508, 1572, 87.1, 66.2),
    ("13b", 0.4): (79.3, 73.2, 65.2, 72.5, 491, 1570, 87.7, 53.7),
    ("13b", 0.2): (77.9, 71.9, 63.6, 64.3, 462, 1545, 86.7, 48.9),
}
"""LLaVA-NeXT's size and the budget -> the paper's figures, in the order of `TASKS`."""


def paper_figure(task: str, selector: str, budget: float, size: str) -> float | None:
    """What the paper reports, where it does.

    Args:
        task: lmms-eval's name.
        selector: "stock", or the value of `hired_selector`.
        budget: 1.0 of stock.
        size: of LLaVA-NeXT, "7b" or "13b"; another has no figures.
    """
    if task not in TASKS or selector not in ("stock", "hired"):
        return None
    row = PAPER.get((size, budget))
    return None if row is None else row[[*TASKS].index(task)]


def paper_size(hf_config: object) -> str:
    """Which of the paper's models a config is, "7b" or "13b", or ""."""
    if getattr(hf_config, "model_type", "") != "llava_next":
        return ""
    text = getattr(hf_config, "text_config", None)
    # The paper's are Vicuna's; Mistral's 7B has the same width.
    if getattr(text, "model_type", "") != "llama":
        return ""
    return {4096: "7b", 5120: "13b"}.get(getattr(text, "hidden_size", 0), "")
