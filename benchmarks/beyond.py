"""Four ideas beyond a head's own sampled mask, on a model's attention: does one of them win?

    python benchmarks/beyond.py MODEL OUT.json [--length 4096 ...] [--task niah_prose ...]
        [--samples 1] [--block-size 64]

Block mass weighted by value norms; pseudo keys or mean values in place of the blocks left out;
masks carried from layer to layer; masks reused from chunk to chunk. What a layer sees is what dense
attention hands it. Every head takes the same gammas, 0.5 to 0.99, and methods are compared where a
figure over heads and prompts is equal, linear between gammas. Density counts blocks over causal
blocks, cost the estimate and the correction as well. The CPU computes it all, in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beyond_core import (
    GAMMAS,
    METHODS,
    Curve,
    LayerResult,
    chunk_estimate,
    chunk_mass,
    forced_gamma_masks,
    joined,
    mass_curve,
    measure_layer,
)
from torch import Tensor

from sp_profile.models import load_model, load_tokenizer, resolve_model
from sp_profile.prompts import encode, has_chat_template
from sp_profile.tasks import TASKS, make_prompt
from sp_runtime.integrations.transformers import ForwardCall, attention_session
from sp_runtime.patterns.cost import QK_PASS

REFRESHES = (2, 4)
CHUNKS = (2, 4)
REUSES = ("absolute", "relative", "both")
TAIL = 4  # block rows at a chunk's end from which the next chunk takes its masks
AT = (0.8, 0.9, 0.95)  # gammas of the reference at which a method is compared with it
FIGURES = ("recall", "recall_p10", "error", "error_p90")
Figures = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Equal:
    """Where two methods are compared: a figure is what the reference has of it at a gamma."""

    figure: str
    gamma: float


class Recorder:
    """An `AttentionHandler` of dense attention that measures every layer of one prompt."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.layers: list[LayerResult] = []

    def begin(self, call: ForwardCall) -> None:
        assert call.q_offset == 0, "prompts come in one piece"
        self.layers = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out, result = measure_layer(q[0].float() * scale, k[0].float(), v[0].float(), self._size)
        self.layers.append(result)
        return out[None].to(q.dtype)


def carried(prompts: Sequence[Sequence[LayerResult]]) -> Iterator[tuple[str, list[Curve], float]]:
    """(method, its curve on each prompt, share of the layers that estimate).

    The layers between two refreshes take the refreshed layer's mask: of the same head, or of the
    head that keeps most at the borrower's own number of blocks, on the other prompts.
    """
    for every in REFRESHES:
        for kind in ("same", "best") if len(prompts) > 1 else ("same",):
            curves = []
            for prompt in prompts:
                others = [other for other in prompts if other is not prompt]
                curves.append(_carried(prompt, others if kind == "best" else [], every))
            yield f"s16 carried, {kind} head, every {every}", curves, 1 / every


def _carried(
    prompt: Sequence[LayerResult], others: Sequence[Sequence[LayerResult]], every: int
) -> Curve:
    parts = []
    for number, layer in enumerate(prompt):
        source = number - number % every
        if source == number:
            parts.append(layer.curves["s16"])
            continue
        heads = torch.arange(layer.exact.shape[0])
        if others:
            scores = [lender_recall(other[number], other[source]) for other in others]
            heads = torch.stack(scores).mean(0).argmax(-1)
        parts.append(mass_curve(layer.exact, forced_gamma_masks(prompt[source].sampled[heads])))
    return joined(parts)


def lender_recall(layer: LayerResult, source: LayerResult) -> Tensor:
    """float [H, H']: what head h keeps under the mask of head h' of an earlier layer with as many
    blocks as its own has at gamma 0.9."""
    masks = forced_gamma_masks(source.sampled)
    own = layer.curves["s16"].density[:, GAMMAS.index(0.9)]
    result = torch.empty(len(own), masks.shape[1])
    for lender in range(masks.shape[1]):
        curve = mass_curve(layer.exact, masks[:, lender, None].expand(-1, len(own), -1, -1))
        for head, blocks in enumerate(own):
            result[head, lender] = float(np.interp(blocks, curve.density[head], curve.recall[head]))
    return result


def reused(prompts: Sequence[Sequence[LayerResult]]) -> Iterator[tuple[str, list[Curve], float]]:
    """(method, its curve on each prompt, share of the causal blocks that are estimated)."""
    rows = prompts[0][0].exact.shape[-1]
    for chunks in CHUNKS:
        for kind in REUSES:
            curves = [
                joined(
                    mass_curve(
                        layer.exact,
                        forced_gamma_masks(chunk_mass(layer.sampled, chunks, TAIL, kind)),
                    )
                    for layer in prompt
                )
                for prompt in prompts
            ]
            yield f"s16 {chunks} chunks, {kind}", curves, chunk_estimate(rows, chunks, TAIL)


def figures(curve: Curve, estimate: float, per_left_out: float) -> Figures:
    """Means and tails over heads, at every gamma. estimate: causal blocks that the masks cost;
    per_left_out: blocks that a block left out costs."""
    density = curve.density.mean(0)
    found = {
        "density": density,
        "cost": density + estimate + per_left_out * (1 - density),
        "recall": curve.recall.mean(0),
        "recall_p10": curve.recall.quantile(0.1, 0),
    }
    if curve.error is not None:
        found |= {"error": curve.error.mean(0), "error_p90": curve.error.quantile(0.9, 0)}
    return {name: [round(x, 5) for x in values.tolist()] for name, values in found.items()}


def ratio(method: Figures, reference: Figures, equal: Equal, of: str) -> float | None:
    """`of` ("density", "cost") of a method over its reference's, where a figure is what it is of
    the reference at a gamma; None where the method reaches it at no gamma measured."""
    at, wanted = GAMMAS.index(equal.gamma), reference[equal.figure][GAMMAS.index(equal.gamma)]
    known = np.array(method[equal.figure])
    if not known.min() <= wanted <= known.max():
        return None
    order = np.argsort(known)
    found = np.interp(wanted, known[order], np.array(method[of])[order])
    return round(float(found) / reference[of][at], 4)


def compare(prompts: Sequence[Sequence[LayerResult]], size: int) -> dict[str, Any]:
    """The document of one length: figures by method, and ratios to the reference."""
    found = [
        (name, [joined([layer.curves[name] for layer in prompt]) for prompt in prompts], 1.0)
        for name in METHODS
    ]
    found += [*carried(prompts), *reused(prompts)]
    together: dict[str, Figures] = {}
    single: dict[str, list[Figures]] = {}
    for name, curves, share in found:
        estimate = 0.0 if name.startswith("exact") else share * QK_PASS / int(name[1:3])
        # A left-out block counts one key; mean values are added to rows, not computed in blocks.
        left_out = 1 / size if name.endswith(("+key", "+scaled")) else 0.0
        together[name] = figures(joined(curves), estimate, left_out)
        single[name] = [figures(curve, estimate, left_out) for curve in curves]
    ratios = []
    for name, values in together.items():
        base = "exact" if name.startswith("exact") else "s16"
        # A correction changes the error and not what the mask keeps.
        known = [x for x in FIGURES if x in values and ("+" not in name or x.startswith("error"))]
        for equal in (Equal(figure=x, gamma=g) for x in known for g in AT if name != base):
            by_prompt = [
                ratio(*pair, equal, "cost") for pair in zip(single[name], single[base], strict=True)
            ]
            ratios.append(
                {
                    "method": name,
                    "reference": base,
                    "equal": equal.figure,
                    "gamma": equal.gamma,
                    "density": ratio(values, together[base], equal, "density"),
                    "cost": ratio(values, together[base], equal, "cost"),
                    "cost_by_prompt": by_prompt,
                }
            )
    return {"figures": together, "ratios": ratios}


def table(title: str, found: dict[str, Any]) -> Iterator[str]:
    """Cost over the reference's where each figure is what it is of the reference at gamma 0.9."""
    rows: dict[str, dict[str, str]] = {name: {} for name in found["figures"]}
    for row in found["ratios"]:
        if row["gamma"] == 0.9:
            rows[row["method"]][row["equal"]] = "-" if row["cost"] is None else f"{row['cost']:.3f}"
    yield f"{title:36}" + "".join(f"{figure:>12}" for figure in FIGURES)
    for name, cells in rows.items():
        yield f"{name:36}" + "".join(f"{cells.get(figure, ''):>12}" for figure in FIGURES)


def measure(
    model: torch.nn.Module, inputs: Sequence[tuple[int, ...]], size: int
) -> list[list[LayerResult]]:
    """Every layer of every prompt, one dense forward each."""
    recorder, results = Recorder(size), []
    with attention_session(model, recorder, name="sp_beyond"), torch.inference_mode():
        for ids in inputs:
            start = time.perf_counter()
            model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1)
            results.append(recorder.layers)
            print(f"{len(ids)} tokens: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--length", type=int, action="append", help="default: 4096")
    parser.add_argument("--task", choices=TASKS, action="append", help="default: every one")
    parser.add_argument("--samples", type=int, default=1, help="prompts a task")
    parser.add_argument("--block-size", type=int, default=64, choices=(64, 128))
    chosen = parser.parse_args()
    shortest = max(CHUNKS) * TAIL * chosen.block_size
    if min(chosen.length or [4096]) < shortest:
        parser.error(f"--length {shortest} is the least with blocks of {chosen.block_size}")
    source = resolve_model(chosen.model)
    tokenizer = load_tokenizer(source)
    model = load_model(source, "float32", torch.device("cpu"))
    chat = has_chat_template(tokenizer)
    tasks, lengths = chosen.task or list(TASKS), {}
    for length in chosen.length or [4096]:
        inputs = [
            encode(
                make_prompt(task, length, tokenizer, chat_template=chat, index=index),
                tokenizer,
                chat_template=chat,
            )
            for task in tasks
            for index in range(chosen.samples)
        ]
        lengths[str(length)] = compare(measure(model, inputs, chosen.block_size), chosen.block_size)
    document = {
        "block_size": chosen.block_size,
        "gammas": GAMMAS,
        "tasks": tasks,
        "samples": chosen.samples,
        "lengths": lengths,
    }
    chosen.out.write_text(json.dumps(document, allow_nan=False) + "\n")
    for length, found in lengths.items():
        print("\n".join(table(f"{length} tokens", found)))


if __name__ == "__main__":
    main()
