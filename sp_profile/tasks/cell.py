"""A cell of an evaluation: one task at one length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sp_profile.prompts import PromptText
from sp_profile.scoring.metrics import MetricName
from sp_profile.tasks.eval_prompt import EvalPrompt, TaskData, eval_rng
from sp_profile.tasks.fitting import Fitted, Fitter, Sketch


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What `make_prompts` was asked for."""

    task: str
    tokenizer: Any
    length: int
    samples: int
    seed: int
    chat_template: bool
    data: TaskData

    def name(self, index: int) -> str:
        """Of a prompt, for messages."""
        return f"{self.task}-{self.length}-{index}"

    def prompt(
        self,
        index: int,
        text: PromptText,
        token_ids: tuple[int, ...],
        *,
        metric: MetricName,
        max_new_tokens: int,
        origin: str,
        choices: tuple[str, ...] | None = None,
        chat_template: bool | None = None,
    ) -> EvalPrompt:
        """A prompt of this cell; chat_template: where it is not the cell's."""
        chat = self.chat_template if chat_template is None else chat_template
        return EvalPrompt(
            task=self.task,
            index=index,
            length=self.length,
            token_ids=token_ids,
            text=text.text,
            answer_prefix=text.answer_prefix,
            answers=text.answers,
            metric=metric,
            max_new_tokens=max_new_tokens,
            choices=choices,
            data=origin,
            sha256=text.sha256(chat),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A sketch and where its data come from; origin sees how the prompt was fitted."""

    sketch: Sketch
    origin: Callable[[Fitted], str]


def fitted_prompts(
    cell: Cell,
    draw: Callable[[int], Drawn | None],
    *,
    metric: MetricName,
    max_new_tokens: int,
) -> Iterator[EvalPrompt]:
    """Prompts of exactly the cell's length; draw(index) is None where the data end."""
    fitter = Fitter(cell.task, cell.tokenizer, chat_template=cell.chat_template, length=cell.length)
    for index in range(cell.samples):
        drawn = draw(index)
        if drawn is None:
            return

        def filler_rng(index: int = index) -> Any:
            return eval_rng("filler", cell.task, cell.seed, index, cell.length)

        fitted = fitter.fit(drawn.sketch, cell.name(index), filler_rng)
        yield cell.prompt(
            index,
            fitted.prompt,
            fitted.token_ids,
            metric=metric,
            max_new_tokens=max_new_tokens,
            origin=drawn.origin(fitted),
        )
