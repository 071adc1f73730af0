"""Prefill results as tables for a person, or as one document."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_runtime.errors import SpError

from .errors import explain
from .output import Output

if TYPE_CHECKING:
    from sp_profile.prefill_store import RunFacts
    from sp_profile.prefill_types import PrefillResult

_NAMES = {
    "vertical_slash": "v-slash",
    "query_aware": "q-aware",
    "streaming": "stream",
    "lm_infinite": "lm-inf",
    "a_shape": "a-shape",
    "block_sparse": "b-sparse",
    "xattention": "x-attn",
    "widened": "wide",
}


def tell_results(
    output: Output, results: Sequence[PrefillResult], errors: Sequence[SpError], facts: RunFacts
) -> None:
    """Everything that a command found, and what failed under --keep-going."""
    failures = [explain(error) for error in errors]
    if output.json_mode:
        from sp_profile.prefill_store import to_row

        shared = asdict(facts)
        output.document(
            {
                "schema": "sp.prefill",
                **shared,
                "point": json.loads(facts.point),
                "config": json.loads(facts.config),
                "results": [_without(to_row(result, facts), shared) for result in results],
                "errors": [
                    {"code": each.code, "message": each.message, "hint": each.hint}
                    for each in failures
                ],
            }
        )
    elif results:
        _print_results(output, results, facts)
    for failure in failures:
        output.failure(failure)


def _without(row: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in shared and name != "schema"}


def _print_results(output: Output, results: Sequence[PrefillResult], facts: RunFacts) -> None:
    """One row a prompt in each table; 80 columns suffice."""
    method = facts.method + (f" (rule {facts.rule})" if facts.rule else "")
    output.line(
        f"{Path(facts.model).name}: {method}, block {facts.block_size}, {facts.kernels} kernels, "
        f"{facts.dtype} on {facts.device}"
    )
    _print_cost(output, results)
    _print_branches(output, results, facts)
    if output.verbosity >= 1:
        _print_layers(output, results)
    if any(result.agreement is not None for result in results):
        _print_agreement(output, results)
    audits = [audit for result in results for audit in result.sparsity.audits]
    if audits:
        from sp_runtime.audit import told_audits

        output.line(f"audit: {told_audits(audits)}")
    _print_texts(output, results)


def _print_cost(output: Output, results: Sequence[PrefillResult]) -> None:
    rows = []
    for result in results:
        sparsity, timing = result.sparsity, result.timing
        dense = result.dense_timing
        rows.append(
            (
                _short(result.prompt),
                str(result.tokens),
                f"{sparsity.density:.3f}",
                f"{sparsity.estimation:.3f}",
                _seconds(timing.ttft_seconds),
                _seconds(timing.attention_seconds),
                "-" if dense is None else _seconds(dense.ttft_seconds),
                "-" if dense is None else _seconds(dense.attention_seconds),
            )
        )
    columns = ("prompt", "tokens", "density", "estim.", "TTFT", "attn", "dense", "attn")
    output.table(columns, rows)
    warmups = {result.timing.warmup_runs for result in results}
    output.line(
        "density: blocks computed / causal blocks; estim.: the estimates, same unit;\n"
        "TTFT: time to first token; attn: of it inside attention; dense: the plain model;\n"
        f"warm-up runs: {', '.join(map(str, sorted(warmups)))}"
    )


def _print_branches(output: Output, results: Sequence[PrefillResult], facts: RunFacts) -> None:
    total: Counter[str] = Counter()
    for result in results:
        total.update(asdict(result.sparsity.branches))
    used = [name for name, count in total.items() if count]
    rows = [
        (
            _short(result.prompt),
            *(str(getattr(result.sparsity.branches, name)) for name in used),
            result.sparsity.path,
        )
        for result in results
    ]
    output.line()
    output.line("heads by the way they were computed (v: vertical, q: query)")
    columns = ("prompt", *(_NAMES.get(name, name) for name in used), "path")
    output.table(columns, rows, left=(0, len(columns) - 1))
    reasons = {(reason, result.prompt) for result in results for reason in result.sparsity.reasons}
    for reason, prompt in sorted(reasons):
        output.line(f"dense: {_short(prompt)}: {reason}")
    if facts.method == "share" and not total["shared"]:
        output.line("no head was shared: neither the plan nor the evidence asks for it here")
    layers = [layer for result in results for layer in result.sparsity.layers]
    native = {layer.native for layer in layers if layer.native is not None}
    for reason in sorted(native):
        output.line(f"native layers: {reason}")


def _print_layers(output: Output, results: Sequence[PrefillResult]) -> None:
    for result in results:
        output.line()
        output.line(f"density by layer: {_short(result.prompt)}")
        cells = [
            f"{layer.layer:>3} {'native' if layer.density is None else f'{layer.density:.2f}'}"
            for layer in result.sparsity.layers
        ]
        for start in range(0, len(cells), 8):
            output.line("  ".join(cells[start : start + 8]))


def _print_agreement(output: Output, results: Sequence[PrefillResult]) -> None:
    rows = []
    for result in results:
        found = result.agreement
        if found is None:
            continue
        equal = {None: "-", True: "yes", False: "no"}[found.generated_equal]
        rows.append(
            (
                _short(result.prompt),
                str(found.positions),
                f"{found.kl_mean:.4f}",
                f"{found.kl_last:.4f}",
                f"{100 * found.top1:.1f} %",
                f"{found.hidden_rel:.3f}",
                equal,
                f"{result.speedup:.2f}x",
            )
        )
    output.line()
    output.line("agreement with dense attention")
    columns = ("prompt", "positions", "KL", "KL last", "top-1", "hidden", "text", "speed-up")
    output.table(columns, rows)
    output.line(
        "KL: mean, and at the last position, in nats; hidden: relative error of the last\n"
        "hidden state; text: generated text equal; speed-up: dense TTFT / TTFT"
    )


def _print_texts(output: Output, results: Sequence[PrefillResult]) -> None:
    texts = [
        (result.prompt, result.text)
        for result in results
        if result.text is not None and result.generated_tokens > 1
    ]
    if texts:
        output.line()
        output.line("generated")
    for prompt, text in texts:
        output.line(f"{_short(prompt)}: {' '.join(text.split())}")


def _short(prompt: str) -> str:
    path = Path(prompt)
    name = path.stem if path.suffix == ".txt" else path.name
    return name if len(name) <= 18 else name[:15] + "..."


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
