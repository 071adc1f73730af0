"""Times the candidate configurations of `tuning.py` and says which to pin. Triton kernels only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sp_profile.bench.check import check_output
from sp_profile.bench.clock import Clock
from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.masks import MaskMaker
from sp_runtime.block_index import BlockIndex
from sp_runtime.errors import UnsupportedError
from sp_runtime.kernels.base import Kernels

SCHEMA = "sp.bench.tune"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneRow:
    """One configuration of one operation on one shape.

    config: as tuning.py writes it. pinned: it is the one in use. cases: what was timed, such as
    "density 0.25"; median_ms: of each, None with the problem where it does not run or is wrong.
    score: geometric mean of the pinned one's times over this one's; above 1 is faster.
    """

    operation: str
    shape: LayerShape
    config: str
    pinned: bool
    cases: tuple[str, ...]
    median_ms: tuple[float, ...] | None
    problem: str
    score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    """A call to time under a backend, and whether what it gave is right."""

    name: str
    run: Callable[[Any], Any]
    right: Callable[[Any], bool]


def tune(
    shape: LayerShape,
    densities: Sequence[float],
    *,
    device: torch.device,
    clock: Clock,
    seed: int,
) -> Iterator[list[TuneRow]]:
    """The rows of one operation after the other, fastest first.

    Raises UnsupportedError without a GPU that runs the Triton kernels.
    """
    if device.type != "cuda":
        raise UnsupportedError("--tune times Triton kernels and needs a CUDA GPU")
    from sp_runtime.kernels import tuning
    from sp_runtime.kernels.launch import element_class
    from sp_runtime.kernels.triton_backend import TritonKernels

    dtype = getattr(torch, shape.dtype)
    key = (
        torch.cuda.get_device_capability(device),
        shape.head_dim,
        shape.block_size,
        element_class(dtype),
    )
    trials = _Trials(shape, densities, TritonKernels(), device=device, seed=seed)
    warp_specialised = tuning.uses_hopper_kernel(*key)
    operations = ("attention", "mass", "row_lse", "estimate")
    for operation in ("hopper", "hopper_mass", *operations) if warp_specialised else operations:
        kept = tuning.pinned(operation, *key)  # type: ignore[arg-type]
        found = []
        for config in dict.fromkeys((kept, *tuning.candidates(operation, *key))):  # type: ignore[arg-type]
            backend = TritonKernels(
                pinned={operation: config},  # type: ignore[dict-item]
                hopper=operation.startswith("hopper"),
            )
            found.append((config, *_time(trials.of(operation), backend, clock)))
        yield _rows(operation, shape, kept, found)


def _time(
    trials: Sequence[_Trial], backend: Kernels, clock: Clock
) -> tuple[tuple[str, ...], tuple[float, ...] | None, str]:
    cases, times = tuple(trial.name for trial in trials), []
    for trial in trials:
        try:
            with torch.inference_mode():
                if not trial.right(trial.run(backend)):
                    return cases, None, "wrong result"
                times.append(clock.measure(lambda t=trial: t.run(backend)).times.median_ms)  # type: ignore[misc]
        except Exception as error:  # a candidate that the GPU refuses, in words of its own
            return cases, None, " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return cases, tuple(times), ""


def _rows(
    operation: str, shape: LayerShape, kept: Any, found: Sequence[tuple[Any, ...]]
) -> list[TuneRow]:
    base = next(times for config, _, times, _ in found if config == kept)
    rows = [
        TuneRow(
            operation=operation,
            shape=shape,
            config=str(config),
            pinned=config == kept,
            cases=cases,
            median_ms=times,
            problem=problem,
            score=_score(base, times),
        )
        for config, cases, times, problem in found
    ]
    return sorted(rows, key=lambda row: -(row.score or 0))


def _score(base: Sequence[float] | None, times: Sequence[float] | None) -> float | None:
    if base is None or times is None:
        return None
    logs = [math.log(a / b) for a, b in zip(base, times, strict=True)]
    return math.exp(sum(logs) / len(logs))


class _Trials:
    """What each operation is timed on: random masks for attention, all heads for the others.

    The results of the other operations are compared with those of the pinned configuration.
    """

    def __init__(
        self,
        shape: LayerShape,
        densities: Sequence[float],
        kernels: Kernels,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self._inputs = random_inputs(shape, device, seed)
        self._seed = seed
        group = shape.heads // shape.kv_heads
        maker = MaskMaker(
            grid=shape.grid,
            heads=shape.heads,
            group=group,
            cluster=group,
            seed=seed,
            device=device,
        )
        self._cases = [case for density in densities for case in maker.make("random", density)]
        self._kernels = kernels
        self._heads = torch.arange(shape.heads, device=device)[None]
        full = BlockIndex.full(1, shape.heads, shape.grid, device)
        x = self._inputs
        with torch.inference_mode():
            self._lse = kernels.attention(x.q, x.k, x.v, full, scale=x.scale)[1]

    def of(self, operation: str) -> list[_Trial]:
        """The trials of an operation of `tuning.py`."""
        x = self._inputs
        if operation in ("hopper", "attention"):
            return [self._attention(number) for number in range(len(self._cases))]
        if operation in ("mass", "hopper_mass"):
            one = self._heads[:, :1].contiguous()

            def mass(heads: Tensor, backend: Any) -> Tensor:
                found: Tensor = backend.block_mass(
                    x.q, x.k, self._lse, heads, x.grid, scale=x.scale
                )
                return found

            return [
                self._same("one head", partial(mass, one)),
                self._same("all heads", partial(mass, self._heads)),
            ]
        if operation == "row_lse":
            return [
                self._same(
                    "sampled, stride 16",
                    lambda b: b.sampled_mass(
                        x.q, x.k, self._heads, x.grid, stride=16, scale=x.scale
                    ),
                )
            ]
        return [
            self._same("all heads", lambda b: b.last_block(x.q, x.k, x.grid, scale=x.scale).slash)
        ]

    def _attention(self, number: int) -> _Trial:
        x, case = self._inputs, self._cases[number]
        index = self._kernels.build_index(case.mask, x.grid, case.dense)
        return _Trial(
            name=f"density {case.wanted:g}",
            run=lambda b: b.attention(x.q, x.k, x.v, index, scale=x.scale)[0],
            right=lambda out: check_output(out, x, case.mask, seed=self._seed).ok,
        )

    def _same(self, name: str, run: Callable[[Any], Tensor]) -> _Trial:
        def right(found: Tensor) -> bool:
            return bool(torch.allclose(found, run(self._kernels), rtol=0, atol=2e-3))

        return _Trial(name=name, run=run, right=right)
