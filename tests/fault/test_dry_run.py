"""The dry run: exact sizes of shards, memory against a measurement, and what does not fit."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from sp_cli.errors import RESOURCES
from sp_cli.profile_main import cli
from sp_cli.runner import run as run_command
from torch.profiler import ProfilerActivity, profile

from sp_profile import dry_run as module
from sp_profile.calibrate import calibrate, prepare
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.dry_run import dry_run, fit, memory_need
from sp_profile.record import RecordingHandler
from sp_profile.run_group import RunGroup
from sp_profile.shard import ShardSizes, unpacked_bytes
from sp_runtime.errors import UsageError
from sp_runtime.integrations.transformers import attention_session


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory) -> CalibrationConfig:
    """Two prompts; the context of the model takes some thousand tokens."""
    prompts = tmp_path_factory.mktemp("prompts") / "two.jsonl"
    texts = ["The sky is blue. " * 30, "Here we go. There and back again. " * 20]
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return CalibrationConfig(model=str(tiny_model), prompts=(str(prompts),), device="cpu")


def test_dry_run_writes_nothing_and_counts_what_is_left(config, tmp_path):
    before = dry_run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert (before.prompts, before.resumed, before.missing) == (2, 0, ())
    assert before.tokens == sum(prompt.tokens for prompt in before.run.prompts)
    assert before.seconds > 0
    assert before.probes == (before.longest,)  # every prompt is shorter than 512 tokens
    calibrate(config, tmp_path / "run")
    after = dry_run(config, tmp_path / "run")
    assert (after.prompts, after.resumed, after.disk, after.seconds) == (0, 2, 0, None)
    with pytest.raises(UsageError, match="another configuration"):
        dry_run(dataclasses.replace(config, gamma=0.5), tmp_path / "run")


def test_sizes_of_shards_are_exact_before_compression(config, tmp_path):
    run = calibrate(config, tmp_path / "run").config
    needs = dry_run(config, tmp_path / "other")
    sizes = []
    sizes_of_shard = ShardSizes(
        heads=8,
        candidates=len(run.candidates),
        lent=len(run.lending),
        oracles=len(run.oracle_gammas),
    )
    for prompt in run.prompts:
        path = tmp_path / "run" / "shards" / f"{prompt.sha256}.npz"
        with zipfile.ZipFile(path) as archive:
            arrays = [
                np.lib.format.read_array(io.BytesIO(archive.read(name)))
                for name in archive.namelist()
                if name != "meta.npy"
            ]
        unpacked = sum(array.nbytes for array in arrays)
        assert unpacked == unpacked_bytes(prompt.tokens, 64, sizes_of_shard)
        sizes.append(path.stat().st_size)
    assert sum(sizes) < needs.disk


def peak_bytes(work) -> int:
    """The most memory that torch's CPU allocator held at once, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    total = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def test_memory_is_at_least_what_a_forward_takes_and_not_far_from_it(config):
    tokens = 2048
    prepared = prepare(config, RunGroup())
    model = prepared.load_model()
    handler = RecordingHandler(prepared.record_settings(), prepared.kernels)
    ids = torch.arange(tokens)[None] % 300

    def forward():
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

    with attention_session(model, handler, name="sp_recording", layers=frozenset((0, 1))):
        measured = peak_bytes(forward)
    needs = memory_need(prepared.loaded.config, prepared.run, tokens)
    predicted = needs.activations + needs.recording
    assert measured <= predicted <= 3 * measured
    weights = sum(tensor.numel() * 4 for tensor in (*model.parameters(), *model.buffers()))
    assert needs.weights == weights


def test_what_does_not_fit_ends_with_6_and_is_named(config, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    monkeypatch.setattr(module, "free_disk", lambda path: 10)
    options = ["--model", config.model, "--prompts", config.prompts[0], "--device", "cpu"]
    command = ["calibrate", *options, "-o", str(tmp_path / "run"), "--dry-run", "--json"]
    assert run_command(cli, command) == RESOURCES
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is False
    assert document["seconds"] is None
    assert [text.split(" of ")[1].split(" ")[0] for text in document["missing"]] == [
        "memory", "disk",
    ]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_time_is_continued_as_a_parabola_without_negative_terms():
    linear, square = fit((512, 1024), [2 * 512 + 3 * 512**2, 2 * 1024 + 3 * 1024**2])
    assert (linear, square) == pytest.approx((2, 3))
    assert fit((512, 1024), [1.0, 1.5]) == pytest.approx((1.5 / 1024, 0))
    assert fit((512, 1024), [1.0, 9.0])[0] == 0
    assert fit((100,), [1.0]) == (0, 1e-4)
