"""A fault at every file-system call of a run: the old state or the new, and the run resumes."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from sp_cli.errors import RESOURCES, explain

from sp_profile import calibrate as calibrate_module
from sp_profile.agreement import Agreement
from sp_profile.artefact import verify_files, write_profile
from sp_profile.calibrate import calibrate
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.models import load_config, load_model, load_tokenizer, resolve_model
from sp_profile.prefill_run import PrefillPrompt, PrefillRun, open_prefill_run
from sp_profile.prefill_store import RunFacts
from sp_profile.prefill_types import (
    BranchCounts,
    EncodedPrompt,
    LayerResult,
    PrefillConfig,
    PrefillResult,
    Sparsity,
    Timing,
)
from sp_profile.result_file import partial_folder
from sp_profile.run_folder import open_run
from sp_runtime.errors import SpError, UsageError
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import load_profile

CODES = ("ENOSPC", "EIO", "EROFS", "SIGKILL")


def strike_everywhere(faults, root, calls, code, work, begin, check) -> int:
    """Begin anew, do `work` with a fault at each call, `check`; how many faults were told of.

    check(): that the reader sees the old state or the new; it then finishes the work without a
    fault. A fault is told of by an error of exit code 6, unless nothing depended on that call.
    """
    told = 0
    for at in range(1, len(calls) + 1):
        begin()
        error = faults.strike(root, at, faults.CODES[code], work)
        where = f"{code} at call {at}, {calls[at - 1]}"
        if error is not None and code != "SIGKILL":
            assert isinstance(error, SpError), f"{where}: {error!r}"
            assert explain(error).exit_code == RESOURCES, f"{where}: {error}"
            assert error.hint, where
        told += error is not None
        check(where)
    return told


# -- calibrate


@pytest.fixture(scope="module")
def calibration(tiny_model, tmp_path_factory):
    """A calibration of two short prompts, each loaded and measured only once, to be quick.

    The writes are those of every other run; killed runs that measure are in test_kills.py.
    """
    prompts = tmp_path_factory.mktemp("prompts") / "two.jsonl"
    texts = ["The sky is blue. " * 12, "Here we go. There and back again. " * 6]
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = CalibrationConfig(model=str(tiny_model), prompts=(str(prompts),), device="cpu")
    source = resolve_model(config.model)
    loaded = {
        "load_config": load_config(source),
        "load_tokenizer": load_tokenizer(source),
        "load_model": load_model(source, "float32", torch.device("cpu")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, result in loaded.items():
            patch.setattr(calibrate_module, name, lambda *_, result=result, **__: result)
        measured, record = {}, calibrate_module._Session._record

        def record_once(self, model, handler, prompt, ids):
            if prompt not in measured:
                measured[prompt] = record(self, model, handler, prompt, ids)
            return measured[prompt]

        patch.setattr(calibrate_module._Session, "_record", record_once)
        yield config


def shard_files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "shards").iterdir()}


@pytest.mark.parametrize("code", CODES)
def test_calibration_survives_a_fault_at_every_call(calibration, faults, tmp_path, code):
    whole, run = tmp_path / "whole", tmp_path / "run"
    calibrate(calibration, whole)
    reference = shard_files(whole)
    calls = faults.count_calls(run, lambda: calibrate(calibration, run))
    assert len(calls) > 25
    assert {"mkdir", "open", "write", "fsync", "replace", "lock"} <= set(calls)

    def check(where):
        if (run / "run.json").exists():
            seen = open_run(run, allow_unfinished=True)
            done = {f"{entry.unit}.npz" for entry in seen.entries}
            assert len(list(seen.shards())) == len(done), where
            assert all(shard_files(run)[name] == reference[name] for name in done), where
        else:
            with pytest.raises(UsageError, match="not a run folder"):
                open_run(run)
        summary = calibrate(calibration, run)
        assert summary.resumed + summary.measured == summary.total == 2, where
        assert shard_files(run) == reference, where
        names = {*os.listdir(run), *os.listdir(run / "shards")}
        assert names == {"run.json", "shards", "journal.jsonl", "lock", *reference}, where

    begin = functools.partial(shutil.rmtree, run, ignore_errors=True)
    work = functools.partial(calibrate, calibration, run)
    told = strike_everywhere(faults, run, calls, code, work, begin, check)
    assert told > len(calls) * 0.8


# -- the profile's folder, as `cluster` publishes it


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("code", ["EIO", "SIGKILL"])  # a full disk: tests/unit/test_artefact.py
def test_profile_survives_a_fault_at_every_call(examples, faults, tmp_path, code):
    def write(folder, name):
        profile = examples.make_profile(model_name=name)
        write_profile(
            folder,
            profile,
            heads=examples.head_rows(profile),
            similarity=examples.similarity(profile),
            overwrite=True,
        )

    root = tmp_path / "profiles"
    write(tmp_path / "a", "example/old")
    write(tmp_path / "b", "example/new")
    old, new = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    seen = set()

    def begin():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "a", root / "p")

    def check(where):
        found = snapshot(root / "p")
        assert found in (old, new), where
        seen.add("old" if found == old else "new")
        verify_files(root / "p", load_profile(root / "p"))
        if os.listdir(root) != ["p"]:  # killed before it could tidy up, or unable to
            write(root / "p", "example/new")
            assert snapshot(root / "p") == new, where
            assert os.listdir(root) == ["p"], where

    begin()
    work = functools.partial(write, root / "p", "example/new")
    calls = faults.count_calls(root, work)
    assert {"mkdir", "open", "write", "fsync", "replace", "exchange", "unlink"} <= set(calls)
    strike_everywhere(faults, root, calls, code, work, begin, check)
    assert seen == {"old", "new"}


# -- stored prefills


def make_result(name: str, text: str = "two\nlines \x1b of any \u4e2d characters") -> PrefillResult:
    timing = Timing(
        ttft_seconds=0.5,
        runs_seconds=(0.5,),
        attention_seconds=0.1,
        warmup_runs=0,
        peak_memory_bytes=None,
    )
    branches = BranchCounts(dense=8)
    layer = LayerResult(layer=0, density=0.5, estimation=0.0, branches=branches, native=None)
    return PrefillResult(
        prompt=name,
        sha256="a" * 64,
        tokens=3,
        chunk_tokens=3,
        timing=timing,
        sparsity=Sparsity(
            path="sparse",
            reasons=(),
            density=0.5,
            estimation=0.0,
            branches=branches,
            layers=(layer,),
        ),
        generated_tokens=2,
        generated=(1, 2),
        text=text,
        dense_timing=timing,
        dense_text=None,
        agreement=Agreement(
            positions=3,
            of_positions=3,
            kl_mean=0.25,
            kl_max=1.0,
            kl_last=0.5,
            top1=1.0,
            hidden_max_abs=0.1,
            hidden_rel=0.0,
            generated_equal=None,
        ),
    )


def make_run(fingerprint, **changes: object) -> PrefillRun:
    point = OperatingPoint(method="vertical_slash", **changes)
    names = ("one\n", "two")
    return PrefillRun(
        facts=RunFacts(
            model="m", revision=None, trust_remote_code=False, profile_id=None,
            method=point.method, rule="", point="{}", config="{}", dtype="float32",
            device="cpu", kernels="reference", block_size=128, chunk_size=None, chat_template=False,
        ),
        config=PrefillConfig(point=point),
        fingerprint=fingerprint,
        prompts=tuple(
            PrefillPrompt.of(EncodedPrompt(name=name, sha256="a" * 64, token_ids=(1, 2, 3)))
            for name in names
        ),
        versions=(("torch", "2"),),
    )  # fmt: skip


def prefill(target: Path, run: PrefillRun, *, overwrite: bool = False) -> int:
    """Like the command, with results made up; how many were made now."""
    made = 0
    with open_prefill_run(target, run, overwrite=overwrite) as stored:
        for number, prompt in enumerate(run.prompts):
            if stored.get(number) is None:
                stored.add(number, make_result(json.loads(prompt.name)))
                made += 1
        stored.publish()
    return made


@pytest.mark.parametrize("code", CODES)
def test_stored_prefills_survive_a_fault_at_every_call(examples, faults, tmp_path, code):
    run = make_run(examples.make_profile().model)
    root = tmp_path / "results"
    target = root / "r.jsonl"
    root.mkdir()
    prefill(tmp_path / "whole.jsonl", run)
    reference = (tmp_path / "whole.jsonl").read_bytes()

    def begin():
        shutil.rmtree(root)
        root.mkdir()

    def check(where):
        assert not target.exists() or target.read_bytes() == reference, where
        if not target.exists() or partial_folder(target).exists():
            prefill(target, run)
        assert target.read_bytes() == reference, where
        prefill(target, run, overwrite=True)
        assert os.listdir(root) == [target.name], where

    begin()
    calls = faults.count_calls(root, lambda: prefill(target, run))
    strike_everywhere(faults, root, calls, code, lambda: prefill(target, run), begin, check)


def test_stored_prefills_resume_and_refuse_another_run(examples, tmp_path):
    fingerprint = examples.make_profile().model
    run, other = make_run(fingerprint), make_run(fingerprint, sink=64)
    target, long = tmp_path / "r.jsonl", "\u4e2d" * 20_000  # over the strict reader's limit
    with open_prefill_run(target, run) as stored:
        stored.add(1, make_result("two", text=long))
    with open_prefill_run(target, run) as stored:
        assert stored.get(0) is None
        assert stored.get(1) == make_result("two", text=long)
    with pytest.raises(UsageError, match=r"config\.point\.sink: 128, 64") as caught:
        prefill(target, other)
    assert "--overwrite" in caught.value.hint
    assert prefill(target, run) == 1
    with pytest.raises(UsageError, match="exists"):
        prefill(target, run)
    with open_prefill_run(target, run, overwrite=True) as stored:
        stored.add(0, make_result("one\n"))
    assert prefill(target, other, overwrite=True) == 2
    assert os.listdir(tmp_path) == [target.name]
