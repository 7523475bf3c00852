"""Whether a budget can be honoured: by the installed vLLM, the method, the checkpoint.

Found out once an engine, before it drops anything.
"""

from abc import abstractmethod
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

import vllm
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.model_loader import get_model_cls
from vllm.multimodal.processing import BaseMultiModalProcessor, TimingContext

from vllm_hired.engine.budgets import BudgetedInputs, with_budgets
from vllm_hired.engine.contract import contract_problem
from vllm_hired.engine.inputs import item_layout
from vllm_hired.engine.processing_info import HiredProcessingInfoMixin
from vllm_hired.engine.refusals import PROCESSOR_FILES
from vllm_hired.errors import HiredConfigError
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.probe import needs_problem, probe_problem
from vllm_hired.towers import tower_type


class HiredObstaclesMixin(BaseMultiModalProcessor[HiredProcessingInfoMixin]):
    """Of `HiredMultiModalProcessorMixin`, below it: `super()` here is upstream's.

    Attributes:
        check_options: of the dummy image that `check_dropping` sends.
    """

    check_options: ClassVar[MultiModalDummyOptions] = {}

    def check_dropping(self) -> None:
        """Finds out, once, whether this vLLM and this checkpoint let tokens be dropped.

        Raises:
            HiredConfigError: they do not.
        """
        if self._obstacle is not None:
            raise HiredConfigError(*self._obstacle)

    @cached_property
    def _obstacle(self) -> tuple[str, object, str] | None:
        """The arguments of a `HiredConfigError`: each refusal is a new one."""
        budget = min(self.info.hired.max_budget, Fraction(1, 2))
        model_cls = get_model_cls(self.info.ctx.model_config)
        problem = contract_problem(
            *(model_cls, type(self), type(self.info), type(self.info.ctx)),
            BudgetedInputs,
        )
        if problem is not None:
            return "hired_budget", float(budget), problem
        return (
            self._method_problem() or self.file_problem() or self._dummy_problem(budget)
        )

    def _method_problem(self) -> tuple[str, object, str] | None:
        hired, tower = self.info.hired, tower_type(self.info.get_hf_config())
        problem = needs_problem(hired.selector, tower, hired.attention)
        if problem is not None or hired.selector in SELECTORS:
            return problem
        broken = probe_problem(
            make_selector(hired.selector, hired.method),
            self.info.probe_layouts(),
            hired.alpha,
        )
        return None if broken is None else ("hired_selector", hired.selector, broken)

    def _dummy_problem(self, budget: Fraction) -> tuple[str, object, str] | None:
        """Sends a dummy image through upstream's code, with dropping and without: it
        must get `K` placeholders, and a hash unlike stock's."""
        inputs = super().get_dummy_inputs(
            self.info.ctx.model_config.max_model_len, {"image": 1}, self.check_options
        )
        results = []
        for request in (inputs, with_budgets(inputs, self.info.hired, [budget])):
            try:
                results.append(super().apply(request, TimingContext(enabled=False)))
            except VLLMValidationError as error:
                return (
                    "model",
                    self.info.ctx.model_config.model,
                    f"its {PROCESSOR_FILES} does not cut the tiles that its "
                    f"config.json describes: {error}",
                )
        stock, dropped = results
        (item,) = dropped["mm_kwargs"]["image"]
        layout = item_layout(self.info.get_hf_config(), item)
        expected = self.info.get_kept_count(layout, budget).tokens
        found = [r.get_num_embeds() for r in dropped["mm_placeholders"]["image"]]
        problem = None
        if found != [expected]:
            problem = f"a dummy image gets {found} placeholders, not {expected}"
        elif stock["mm_hashes"]["image"] == dropped["mm_hashes"]["image"]:
            problem = "the hash of an image does not depend on its budget"
        if problem is None:
            return None
        problem = f"vLLM {vllm.__version__} does not fit vllm_hired: {problem}"
        return "hired_budget", float(budget), problem

    @abstractmethod
    def file_problem(self) -> tuple[str, object, str] | None:
        """Where the checkpoint's processor and its config.json disagree, as the
        arguments of a `HiredConfigError`, or None."""
