"""`sp-run prefill`: prefill prompt files, measure, compare with dense, store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import SpError, UsageError
from sp_runtime.method_spec import METHOD_SYNTAX, fields_of, method_name, parse_method
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint

from .completers import complete_method
from .options import (
    PartialFailure,
    block_size_option,
    chat_template_option,
    device_option,
    dtype_option,
    include_text_option,
    keep_going_option,
    kernels_option,
    model_option,
    number_option,
    output_option,
    overwrite_option,
    profile_option,
    public_key_option,
    revision_option,
    trust_option,
    weights_option,
    with_output,
)
from .output import Output
from .point_options import Overrides, point_options, take_overrides
from .prefill_table import tell_results

if TYPE_CHECKING:
    from sp_profile.model_source import ModelSource
    from sp_profile.models import LoadedConfig
    from sp_profile.prefill_run import PrefillRunFolder
    from sp_profile.prefill_store import RunFacts
    from sp_profile.prefill_types import EncodedPrompt, PrefillConfig, PrefillResult
    from sp_profile.prompts import ReadPrompts
    from sp_runtime.fingerprint import ModelFingerprint
    from sp_runtime.profile import Profile


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
    overrides: Overrides
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


@click.command(
    epilog=f"SPEC is {METHOD_SYNTAX}, such as share:release or flexprefill:gamma=0.9. Methods: "
    f"{', '.join(METHODS)}; plan is share:plan. Methods share, minference and moa read a profile."
)
@click.argument("files", nargs=-1, required=True)
@model_option
@revision_option
@profile_option("Profile of this model: a folder, or owner/name[@revision] of the hub.")
@public_key_option
@click.option(
    "--method", metavar="SPEC", shell_complete=complete_method,
    help="Method; the profile's if left out.",
)  # fmt: skip
@click.option("--rule", type=click.Choice(RULES), help="Rule of method share.")
@click.option("--point", metavar="NAME", help="Operating point of the profile.")
@point_options
@click.option("--compare", type=click.Choice(["dense"]), help="Prefill densely too and compare.")
@number_option("--generate", int, "Greedy tokens after the prompt.", default=0)
@include_text_option
@number_option("--chunk-size", int, "Tokens in one forward; all of them if left out.")
@chat_template_option("Make the prompt a user turn; on where the model has a template.")
@kernels_option
@dtype_option
@device_option
@block_size_option("Without a profile: 64 or 128 tokens.")
@number_option("--repeat", int, "Measured runs; the median counts.", default=1)
@number_option("--warmup", int, "Runs before them; 1 on a GPU, 0 on a CPU if left out.")
@number_option(
    "--agreement-sample", int, "Compare logits at N positions; at all of them if left out."
)
@click.option(
    "--audit", type=float, default=0.0, metavar="SHARE",
    help="Compute this share of the heads, such as 0.001, densely as well, and tell their recall.",
)  # fmt: skip
@weights_option
@click.option(
    "--on-oom", type=click.Choice(["fail", "dense"]), default="fail", show_default=True,
    help="Where memory does not suffice for a prompt, in half the chunks either.",
)  # fmt: skip
@keep_going_option
@trust_option
@output_option(
    "Store results in FILE.jsonl or FILE.parquet; the same command resumes.",
    metavar="FILE",
    required=False,
)
@overwrite_option
@with_output(config=True, progress=True)
def prefill(
    output: Output,
    files: tuple[str, ...],
    compare: str | None,
    generate: int,
    chunk_size: int | None,
    repeat: int,
    warmup: int | None,
    agreement_sample: int | None,
    audit: float,
    allow_weights_mismatch: bool,
    on_oom: Any,
    include_text: bool,
    public_key: str | None,
    keep_going: bool,
    target: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Prefill prompt FILES, and say what was computed.

    FILES are .txt and .jsonl files, folders of them, or -. Numbers such as --gamma override the
    operating point. Token counts are in tokens.

    \b
    Examples:
      sp-run prefill --model smollm2-135m --profile profiles/smollm2-135m prompts/ --compare dense
      sp-run prefill --model smollm2-135m --method flexprefill:gamma=0.95 prompts/*.txt
      sp-run prefill --model M --profile P prompts/ --generate 16 -o results.jsonl
    """
    from sp_profile.model_source import resolve_model
    from sp_profile.profile_input import read_profile
    from sp_profile.prompts import read_prompts
    from sp_profile.result_file import check_target
    from sp_runtime.profile import DEFAULT_POINT

    # What needs no torch comes first, so that a mistake in a command costs no seconds.
    overrides = take_overrides(options)
    request = Request(**options, overrides=overrides)
    if target is not None:
        check_target(target, overwrite=overwrite)
    if public_key is not None and request.profile is None:
        raise UsageError("--public-key is about a profile", hint="say --profile too")
    profile = None if request.profile is None else read_profile(request.profile, public_key)
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
        include_text=include_text,
        audit=audit,
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
            hint="pass --profile (sp-profile calibrate and cluster make one), or a --method that "
            "needs none, such as vertical_slash",
        )
    make_pattern_factory(point, profile)  # refuses what the profile lacks before weights load
    return point


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
    tell_results(output, results, errors, facts)
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
        revision=request.revision,
        trust_remote_code=request.trust_remote_code,
        profile_id=None if profile is None else profile.profile_id,
        method=point.method,
        rule=point.rule if point.method == "share" else "",
        point=json.dumps(dataclasses.asdict(point), sort_keys=True),
        config=json.dumps(_plain_config(config), sort_keys=True),
        dtype=request.dtype,
        device=str(device),
        kernels=select_kernels(config.kernels, device).name,
        block_size=request.block_size or block_size,
        chunk_size=config.chunk_size,
        chat_template=config.chat_template,
    )


def _plain_config(config: PrefillConfig) -> dict[str, Any]:
    """How it is measured, without the operating point, which stands beside it."""
    plain = dataclasses.asdict(config)
    del plain["point"]
    return plain


def _warn_of_ignored(output: Output, point: OperatingPoint, overrides: Overrides) -> None:
    ignored = [name for name, _ in overrides if name not in fields_of(point)]
    if ignored:
        names = ", ".join("--" + name.replace("_", "-") for name in ignored)
        planned = point.method == "share" and point.rule == "plan"
        where = "rule plan, which takes it head by head" if planned else method_name(point)
        output.warn(f"{names}: no effect under {where}")
