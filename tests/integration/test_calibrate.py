"""Calibration of a tiny model: resuming, quarantine, memory, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sp_profile import calibrate as calibrate_module
from sp_profile.calibrate import calibrate
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.record import RecordingHandler
from sp_profile.run_folder import open_run
from sp_runtime.errors import ResourceError, SpError, UsageError


@pytest.fixture(scope="module")
def tiny_folder(helper, tmp_path_factory) -> Path:
    return helper("tiny_models").save_model(tmp_path_factory.mktemp("tiny"), context=1024)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Four prompts of some hundred tokens."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = [" ".join(f"The {word} is {n}." for n in range(40)) for word in ("sky", "sun", "grass")]
    texts.append("Here we go. " * 30)
    path.write_text("".join(json.dumps({"text": text, "task": "own"}) + "\n" for text in texts))
    return path


@pytest.fixture
def config(tiny_folder, prompts) -> CalibrationConfig:
    return CalibrationConfig(model=str(tiny_folder), prompts=(str(prompts),), device="cpu")


def shard_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / "shards").iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder, prompts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "whole"
    calibrate(CalibrationConfig(model=str(tiny_folder), prompts=(str(prompts),)), path)
    return path


def test_a_run_holds_every_prompt_and_what_was_asked(uninterrupted):
    run = open_run(uninterrupted)
    assert [shard.prompt.task for shard in run.shards()] == ["own"] * 4
    assert run.config.chat_template is True
    assert run.config.block_size == 64
    assert run.config.kernels == "reference"
    assert dict(run.config.versions).keys() == {"torch", "transformers", "sparse-prefill"}
    assert run.fingerprint.weights_sha256 is not None
    for shard in run.shards():
        assert shard.heads.tolist() == [[a, b] for a in range(2) for b in range(4)]
        own = shard.recall_exact.diagonal()
        assert ((own >= 0.9 - 1e-5) & (own <= 1)).all()


def test_text_of_prompts_is_not_kept(uninterrupted):
    content = b"".join(file.read_bytes() for file in uninterrupted.rglob("*") if file.is_file())
    assert b"grass" not in content


def test_interrupted_at_every_prompt_and_resumed_gives_identical_shards(
    config, uninterrupted, tmp_path
):
    def stop(done, total, label):
        if stop.countdown == 0 and label:
            raise KeyboardInterrupt
        stop.countdown -= 1

    for _ in range(3):
        stop.countdown = 1
        with pytest.raises(KeyboardInterrupt):
            calibrate(config, tmp_path / "run", progress=stop)
    seen = []
    summary = calibrate(
        config, tmp_path / "run", progress=lambda *arguments: seen.append(arguments)
    )
    assert (summary.resumed, summary.measured, summary.total) == (3, 1, 4)
    assert [done for done, _, _ in seen] == [3, 4]
    assert shard_files(tmp_path / "run") == shard_files(uninterrupted)


def test_order_and_repetition_of_prompts_do_not_matter(config, prompts, uninterrupted, tmp_path):
    lines = prompts.read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(lines[2:] + lines[:3]))
    changed = dataclasses.replace(config, prompts=(str(tmp_path / "b.jsonl"),))
    summary = calibrate(changed, tmp_path / "run")
    assert (summary.total, summary.duplicates) == (4, 1)
    assert shard_files(tmp_path / "run") == shard_files(uninterrupted)
    assert summary.config == open_run(uninterrupted).config


def test_finished_run_loads_no_model(config, uninterrupted, monkeypatch):
    monkeypatch.setattr(calibrate_module, "load_model", None)
    before = shard_files(uninterrupted)
    assert calibrate(config, uninterrupted).measured == 0
    assert shard_files(uninterrupted) == before


def test_another_configuration_in_the_folder_is_refused(config, uninterrupted):
    with pytest.raises(UsageError, match=r"gamma: 0\.9, 0\.8"):
        calibrate(dataclasses.replace(config, gamma=0.8), uninterrupted)


def test_built_in_tasks_of_the_asked_lengths(tiny_folder, tmp_path):
    config = CalibrationConfig(
        model=str(tiny_folder), tasks=("json_kv", "niah_noise"), lengths=(768,), samples=2
    )
    summary = calibrate(config, tmp_path / "run")
    assert sorted(prompt.task for prompt in summary.config.prompts) == [
        "json_kv", "json_kv", "niah_noise", "niah_noise",
    ]  # fmt: skip
    assert all(760 <= prompt.tokens <= 768 for prompt in summary.config.prompts)


def test_long_prompt_is_refused_with_both_numbers_or_left_out(config, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("The sky is blue. " * 400)
    both = dataclasses.replace(config, prompts=(*config.prompts, str(long)))
    with pytest.raises(UsageError, match=r"long\.txt: \d+ tokens.*context of 1024"):
        calibrate(both, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    summary = calibrate(dataclasses.replace(both, keep_going=True), tmp_path / "run")
    assert (summary.total, len(summary.problems)) == (4, 1)


def break_one_prompt(monkeypatch, number: int) -> None:
    """Attention of the first layer turns NaN in the `number`-th forward."""
    begin, attend = RecordingHandler.begin, RecordingHandler.attend
    seen = []

    def counting(self, call):
        seen.append(call)
        begin(self, call)

    def breaking(self, layer, q, k, v, scale):
        return attend(self, layer, q * torch.nan if len(seen) == number else q, k, v, scale)

    monkeypatch.setattr(RecordingHandler, "begin", counting)
    monkeypatch.setattr(RecordingHandler, "attend", breaking)


def test_prompt_with_nan_is_quarantined_and_counted(config, monkeypatch, tmp_path):
    break_one_prompt(monkeypatch, 2)
    summary = calibrate(dataclasses.replace(config, max_bad_share=0.5), tmp_path / "run")
    assert [entry.reason for entry in summary.quarantined] == [
        "attention of layer 0, head 0 holds NaN or infinity"
    ]
    run = open_run(tmp_path / "run")
    assert len(list(run.shards())) == 3
    assert run.quarantined == summary.quarantined


def test_too_many_bad_prompts_fail_the_run(config, monkeypatch, tmp_path):
    break_one_prompt(monkeypatch, 2)
    with pytest.raises(SpError, match="1 of 4 prompts cannot be measured: attention of layer 0"):
        calibrate(config, tmp_path / "run")


def run_out_of_memory(patch, times: int, error=torch.OutOfMemoryError) -> list[int]:
    """The measurement of layer 1 fails so many times; returns the numbers of heads it was of."""
    seen: list[int] = []
    measure = RecordingHandler._measure

    def failing(self, inputs, lse, *, first_head):
        if inputs.layer == 1:
            seen.append(inputs.q.shape[1])
            if len(seen) <= times:
                raise error("out of memory")
        return measure(self, inputs, lse, first_head=first_head)

    patch.setattr(RecordingHandler, "_measure", failing)
    return seen


def test_out_of_memory_is_tried_once_more_with_few_heads_at_a_time(
    config, uninterrupted, monkeypatch, tmp_path
):
    heads = run_out_of_memory(monkeypatch, times=1)
    calibrate(config, tmp_path / "run")
    # All four heads, then those of one KV head at a time, for this prompt and the others.
    assert heads == [4] + [2, 2] * 4
    found = {shard.prompt: shard for shard in open_run(tmp_path / "run").shards()}
    for whole in open_run(uninterrupted).shards():
        shard = found[whole.prompt]
        assert np.array_equal(shard.masks, whole.masks)
        for name in ("recall_exact", "recall_sampled", "candidate_recall", "a_hat_jsd"):
            np.testing.assert_allclose(getattr(shard, name), getattr(whole, name), atol=1e-5)


def test_out_of_memory_twice_is_a_resource_error_and_the_run_resumes(
    config, uninterrupted, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        heads = run_out_of_memory(patch, times=2)
        with pytest.raises(ResourceError, match="not enough memory on cpu for") as caught:
            calibrate(config, tmp_path / "run")
    assert heads == [4, 2]
    assert "finished prompts are kept" in caught.value.hint
    calibrate(config, tmp_path / "run")
    assert shard_files(tmp_path / "run") == shard_files(uninterrupted)


def test_other_errors_of_the_device_end_the_run_at_once(config, monkeypatch, tmp_path):
    heads = run_out_of_memory(monkeypatch, times=9, error=torch.AcceleratorError)
    with pytest.raises(torch.AcceleratorError):
        calibrate(config, tmp_path / "run")
    assert heads == [4]
