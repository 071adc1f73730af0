"""EleutherAI's lm-evaluation-harness on an attached model.

    with attached_lm(model, tokenizer, profile, method="plan") as attached:
        lm_eval.simple_evaluate(model=attached.lm, tasks=["hellaswag"])
        print(attached.report.summary().totals)

The harness (extra `lm-eval`) sees an ordinary transformers model: its `HFLM` takes a model object.
Prompts shorter than the operating point's `min_tokens` are dense, as everywhere; most of the
harness's own tasks are, so that long-context tasks are what this is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from sp_runtime.errors import UsageError
from sp_runtime.integrations.transformers import attach
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import Profile
from sp_runtime.report import PrefillReport

MakeLm = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttachedLm:
    """lm: the harness's model. report: what every forward did so far; it grows with each one, so
    `report.clear()` between tasks keeps it small."""

    lm: Any
    report: PrefillReport


@contextmanager
def attached_lm(
    model: nn.Module,
    tokenizer: Any,
    profile: Profile | None = None,
    *,
    method: str | None = None,
    point: OperatingPoint | str | None = None,
    kernels: str = "auto",
    block_size: int | None = None,
    make_lm: MakeLm | None = None,
    **lm_options: Any,
) -> Iterator[AttachedLm]:
    """The harness's model over `model`, attached inside the block and restored after it.

    profile, method, point, kernels, block_size: as in `attach`. lm_options: further arguments of
    the harness's class. make_lm: that class; None: `lm_eval.models.huggingface.HFLM`.

    Raises UsageError where lm-eval is not installed or asked for batches (it pads them, which
    sparse prefill refuses), and what `attach` raises.
    """
    batch_size = lm_options.pop("batch_size", 1)
    if batch_size != 1:
        raise UsageError(
            f"batch_size {batch_size!r}: the harness pads batches, which cannot be prefilled "
            "sparsely",
            hint="leave batch_size at 1",
        )
    make = _harness_class() if make_lm is None else make_lm
    options: dict[str, Any] = {"method": method, "point": point, "block_size": block_size}
    with attach(model, profile, kernels=kernels, **options) as report:
        lm = make(pretrained=model, tokenizer=tokenizer, batch_size=1, **lm_options)
        yield AttachedLm(lm=lm, report=report)


def _harness_class() -> MakeLm:
    try:
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise UsageError(
            f"lm-evaluation-harness cannot be imported: {error}",
            hint="pip install 'sparse-prefill[tools,lm-eval]'",
        ) from error
    make: MakeLm = HFLM
    return make
