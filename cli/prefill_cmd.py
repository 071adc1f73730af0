"""`sp-run prefill`: prefill prompt files, measure, compare with dense, store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import SpError, UsageError
from sp_runtime.method_spec import METHOD_SYNTAX, fields_of, method_name, parse_method
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint

from .errors import explain
from .options import (
    PartialFailure,
    device_option,
    dtype_option,
    keep_going_option,
    kernels_option,
    model_option,
    overwrite_option,
    revision_option,
    trust_option,
    with_output,
)
from .output import Output
from .prefill_table import print_results

if TYPE_CHECKING:
    from sp_profile.model_source import ModelSource
    from sp_profile.models import LoadedConfig
    from sp_profile.prefill_run import PrefillRunFolder
    from sp_profile.prefill_store import RunFacts
    from sp_profile.prefill_types import EncodedPrompt, PrefillConfig, PrefillResult
    from sp_profile.prompts import ReadPrompts
    from sp_runtime.fingerprint import ModelFingerprint
    from sp_runtime.profile import Profile

_FLOATS = ("gamma", "tau", "delta", "kappa", "phi", "drift")
_COUNTS = ("min_budget", "max_budget", "min_tokens", "sink", "window", "stride", "dense_layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for, apart from settings of the measurement."""

    model: str
    revision: str | None
    trust_remote_code: bool
    profile: Path | None
    method: str | None
    rule: str | None
    point: str | None
    overrides: tuple[tuple[str, Any], ...]
    chat_template: bool | None
    kernels: str
    dtype: str
    device: str | None
    block_size: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What was found for a request."""

    source: ModelSource
    profile: Profile | None
    prompts: ReadPrompts
    keep_going: bool


def point_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for every number of the operating point."""
    for name in reversed((*_FLOATS, *_COUNTS)):
        kind = float if name in _FLOATS else int
        option = click.option(f"--{name.replace('_', '-')}", name, type=kind, metavar="X")
        command = option(command)
    return command


@click.command(
    epilog=f"SPEC is {METHOD_SYNTAX}, such as share:release or flexprefill:gamma=0.9. Methods: "
    f"{', '.join(METHODS)}; plan is share:plan. Methods share, minference and moa read a profile."
)
@click.argument("files", nargs=-1, required=True)
@model_option
@revision_option
@click.option("--profile", type=click.Path(path_type=Path), help="Profile of this model.")
@click.option("--method", metavar="SPEC", help="Method; the profile's if left out.")
@click.option("--rule", type=click.Choice(RULES), help="Rule of method share.")
@click.option("--point", metavar="NAME", help="Operating point of the profile.")
@point_options
@click.option("--compare", type=click.Choice(["dense"]), help="Prefill densely too and compare.")
@click.option("--generate", default=0, metavar="N", help="Greedy tokens after the prompt.")
@click.option("--chunk-size", type=int, metavar="N", help="Tokens in one forward.")
@click.option(
    "--chat-template/--no-chat-template",
    default=None,
    help="Make the prompt a user turn; on where the model has a template.",
)
@kernels_option
@dtype_option
@device_option
@click.option("--block-size", type=int, help="Without a profile: 64 or 128 tokens.")
@click.option("--repeat", default=1, show_default=True, help="Measured runs; the median counts.")
@click.option("--warmup", type=int, help="Runs before them; 1 on a GPU, 0 on a CPU if left out.")
@click.option("--agreement-sample", type=int, metavar="N", help="Compare logits at N positions.")
@click.option("--allow-weights-mismatch", is_flag=True, help="Accept a fine-tune of the model.")
@click.option(
    "--on-oom", type=click.Choice(["fail", "dense"]), default="fail", show_default=True,
    help="Where memory does not suffice for a prompt, in half the chunks either.",
)  # fmt: skip
@keep_going_option
@trust_option
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), metavar="FILE",
    help="Store results in FILE.jsonl or FILE.parquet; the same command resumes.",
)  # fmt: skip
@overwrite_option
@with_output
def prefill(
    output: Output,
    files: tuple[str, ...],
    compare: str | None,
    generate: int,
    chunk_size: int | None,
    repeat: int,
    warmup: int | None,
    agreement_sample: int | None,
    allow_weights_mismatch: bool,
    on_oom: Any,
    keep_going: bool,
    target: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Prefill prompt FILES (.txt, .jsonl, folders of them, or -) and say what was computed.

    Numbers such as --gamma override the operating point. Token counts are in tokens.
    """
    from sp_profile.model_source import resolve_model
    from sp_profile.prompts import read_prompts
    from sp_profile.result_file import check_target
    from sp_runtime.profile import DEFAULT_POINT, load_profile

    overrides = tuple(
        (name, value) for name in (*_FLOATS, *_COUNTS) if (value := options.pop(name)) is not None
    )
    request = Request(**options, overrides=overrides)
    # What needs no torch comes first, so that a mistake in a command costs no seconds.
    for name, value in overrides:
        _check_override(name, value)
    if target is not None:
        check_target(target, overwrite=overwrite)
    profile = None if request.profile is None else load_profile(request.profile)
    if request.method is not None:
        base = None if profile is None else profile.point(request.point or DEFAULT_POINT)
        parse_method(request.method, profile_point=base)
    prompts = read_prompts(files, keep_going=keep_going)
    source = resolve_model(request.model, revision=request.revision)
    point = _choose_point(request, profile)
    from sp_profile.prefill_types import PrefillConfig

    config = PrefillConfig(
        point=point,
        compare_dense=compare == "dense",
        generate=generate,
        chunk_size=chunk_size,
        kernels=request.kernels,
        repeat=repeat,
        warmup=warmup,
        agreement_sample=agreement_sample,
        block_size=request.block_size,
        allow_weights_mismatch=allow_weights_mismatch,
        on_oom=on_oom,
    )
    _warn_of_ignored(output, point, overrides)
    job = Job(source=source, profile=profile, prompts=prompts, keep_going=keep_going)
    _execute(output, request, config, job, target, overwrite)


def _choose_point(request: Request, profile: Profile | None) -> OperatingPoint:
    """The operating point that profile, choices and overrides amount to."""
    from sp_runtime.integrations.transformers import resolve_point
    from sp_runtime.patterns.registry import make_pattern_factory

    rule: Any = request.rule
    point = resolve_point(profile, method=request.method, rule=rule, point=request.point)
    point = dataclasses.replace(point, **dict(request.overrides))
    if profile is None and point.method == "share":
        raise UsageError(
            "method share needs a profile",
            hint="pass --profile, or another --method, such as vertical_slash",
        )
    make_pattern_factory(point, profile)  # refuses what the profile lacks before weights load
    return point


def _check_override(name: str, value: Any) -> None:
    """Refuse a number that no operating point takes, whatever the profile holds."""
    if name == "max_budget":
        OperatingPoint(min_budget=1, max_budget=value)
    else:
        dataclasses.replace(OperatingPoint(), **{name: value})


def _execute(
    output: Output,
    request: Request,
    config: PrefillConfig,
    job: Job,
    target: Path | None,
    overwrite: bool,
) -> None:
    from sp_profile.models import load_config, load_tokenizer, resolve_device
    from sp_profile.prefill import encode_prompts
    from sp_profile.prompts import has_chat_template
    from sp_runtime.fingerprint import require_match

    device = resolve_device(request.device)
    source, profile = job.source, job.profile
    trust = request.trust_remote_code
    loaded = load_config(source, identify_weights=profile is not None, trust_remote_code=trust)
    if profile is not None:
        allow = config.allow_weights_mismatch
        require_match(profile.model, loaded.fingerprint, allow_weights=allow)
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    chat = request.chat_template
    config = dataclasses.replace(
        config,
        chat_template=has_chat_template(tokenizer) if chat is None else chat,
        weights_sha256=loaded.fingerprint.weights_sha256,
    )
    facts = _facts(request, config, profile, device)
    encoded, unfit = encode_prompts(
        job.prompts.prompts,
        tokenizer,
        config,
        context=loaded.fingerprint.max_position_embeddings,
        keep_going=job.keep_going,
    )
    errors: list[SpError] = [*job.prompts.problems, *unfit]
    if not encoded:
        raise errors[0]
    with _stored_run(target, overwrite, facts, config, loaded.fingerprint, encoded) as stored:
        results = _prefill_all(output, request, config, job, (loaded, tokenizer), encoded, stored)
        if stored is not None:
            stored.publish()
    _tell(output, results, errors, facts)
    if errors:
        raise PartialFailure(failed=len(errors), total=len(errors) + len(results))


@contextlib.contextmanager
def _stored_run(
    target: Path | None,
    overwrite: bool,
    facts: RunFacts,
    config: PrefillConfig,
    fingerprint: ModelFingerprint,
    prompts: Sequence[EncodedPrompt],
) -> Iterator[PrefillRunFolder | None]:
    """Where finished results are kept until all are, if they are to be stored."""
    if target is None:
        yield None
        return
    from sp_profile.prefill_run import PrefillPrompt, PrefillRun, open_prefill_run
    from sp_profile.run_config import computing_versions

    run = PrefillRun(
        facts=facts,
        config=config,
        fingerprint=fingerprint,
        prompts=tuple(PrefillPrompt.of(prompt) for prompt in prompts),
        versions=computing_versions(),
    )
    with open_prefill_run(target, run, overwrite=overwrite) as stored:
        yield stored


def _prefill_all(
    output: Output,
    request: Request,
    config: PrefillConfig,
    job: Job,
    model_parts: tuple[LoadedConfig, Any],
    prompts: Sequence[EncodedPrompt],
    stored: PrefillRunFolder | None,
) -> list[PrefillResult]:
    """The result of every prompt: what is stored, and the rest prefilled now."""
    from sp_profile.models import load_model, resolve_device
    from sp_profile.prefill import Prefiller

    results = [None if stored is None else stored.get(number) for number in range(len(prompts))]
    done = len(results) - results.count(None)
    if done:
        output.info(f"resuming: {done} of {len(prompts)} prompts are finished")
    if done < len(prompts):
        device = resolve_device(request.device)
        loaded, tokenizer = model_parts
        output.detail(f"loading {request.model} on {device} in {request.dtype}")
        model = load_model(
            job.source,
            request.dtype,
            device,
            config=loaded.config,
            trust_remote_code=request.trust_remote_code,
        )
        prefiller = Prefiller(model, tokenizer, config, job.profile)
    with output.progress("prefill", "prompts") as progress:
        progress(done, len(prompts))
        for number, prompt in enumerate(prompts):
            if results[number] is None:
                result = results[number] = prefiller.run(prompt)
                if stored is not None:
                    stored.add(number, result)
                if result.chunk_tokens < min(config.chunk_size or result.tokens, result.tokens):
                    output.warn(f"{result.prompt}: out of memory; {result.sparsity.reasons[-1]}")
                done += 1
                progress(done, len(prompts))
    return [result for result in results if result is not None]


def _facts(
    request: Request, config: PrefillConfig, profile: Profile | None, device: Any
) -> RunFacts:
    from sp_profile.prefill_store import RunFacts
    from sp_runtime.integrations.transformers import DEFAULT_BLOCK_SIZE
    from sp_runtime.kernels.select import select_kernels

    point = config.point
    block_size = profile.calibration.block_size if profile is not None else DEFAULT_BLOCK_SIZE
    return RunFacts(
        model=request.model,
        profile_id=None if profile is None else profile.profile_id,
        method=point.method,
        rule=point.rule if point.method == "share" else "",
        point=json.dumps(dataclasses.asdict(point), sort_keys=True),
        dtype=request.dtype,
        device=str(device),
        kernels=select_kernels(config.kernels, device).name,
        block_size=request.block_size or block_size,
        chunk_size=config.chunk_size,
        chat_template=config.chat_template,
    )


def _tell(
    output: Output, results: Sequence[PrefillResult], errors: Sequence[SpError], facts: RunFacts
) -> None:
    failures = [explain(error) for error in errors]
    if output.json_mode:
        from sp_profile.prefill_store import to_row

        facts_row = dataclasses.asdict(facts)
        output.document(
            {
                "schema": "sp.prefill",
                **facts_row,
                "point": json.loads(facts.point),
                "results": [_without(to_row(result, facts), facts_row) for result in results],
                "errors": [
                    {"code": each.code, "message": each.message, "hint": each.hint}
                    for each in failures
                ],
            }
        )
    if results:
        print_results(output, results, facts)
    for failure in failures:
        output.failure(failure)


def _without(row: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in facts and name != "schema"}


def _warn_of_ignored(
    output: Output, point: OperatingPoint, overrides: tuple[tuple[str, Any], ...]
) -> None:
    ignored = [name for name, _ in overrides if name not in fields_of(point)]
    if ignored:
        names = ", ".join("--" + name.replace("_", "-") for name in ignored)
        planned = point.method == "share" and point.rule == "plan"
        where = "rule plan, which takes it head by head" if planned else method_name(point)
        output.warn(f"{names}: no effect under {where}")
