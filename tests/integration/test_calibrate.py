"""Calibration on a tiny model: what is recorded against float64, resuming, quarantine, refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sp_profile import calibrate as calibrate_module
from sp_profile.calibrate import calibrate
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.candidates import Candidate, LentMask, MaskSettings, default_candidates
from sp_profile.record import NonFiniteAttentionError, RecordingHandler, RecordSettings
from sp_profile.run_folder import open_run
from sp_profile.shard import forced_blocks
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import ResourceError, SpError, UnsupportedError, UsageError
from sp_runtime.integrations.transformers import ForwardCall
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.profile import PromptRecord

TOKENS, LAYERS, HEADS, DIM = 300, (0, 2, 3), 4, 16
SCALE = DIM**-0.5


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    path = Path(__file__).parents[1] / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.save_model(tmp_path_factory.mktemp("tiny"), context=1024)


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


def record_settings(**changes) -> RecordSettings:
    values = {
        "block_size": 64,
        "gamma": 0.8,
        "sample_stride": 8,
        "candidates": default_candidates(),
        "mask_settings": MaskSettings(min_budget=64),
        "layers": LAYERS,
        "num_heads": HEADS,
    }
    return RecordSettings(**(values | changes))


@pytest.fixture(scope="module")
def recorded(random_qkv):
    """(q, k, v of each layer, outputs, shard) of one recorded forward."""
    handler = RecordingHandler(record_settings(), ReferenceKernels())
    layers = {}
    for layer in LAYERS:
        q, k, v = random_qkv(layer, 1, HEADS, 2, TOKENS, TOKENS, DIM)
        layers[layer] = (q * 4, k, v)
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    outputs = [handler.attend(layer, *qkv, SCALE) for layer, qkv in layers.items()]
    prompt = PromptRecord(sha256="0" * 64, tokens=TOKENS, task="")
    return SimpleNamespace(layers=layers, outputs=outputs, shard=handler.shard(prompt))


@pytest.fixture(scope="module")
def literal(recorded, oracle):
    """Masses of every head in float64 and the masks they give, [LH, R, C]."""
    grid = BlockGrid(q_len=TOKENS, kv_len=TOKENS, block_size=64)
    slots = torch.arange(HEADS)[None]
    forced = torch.eye(grid.num_rows, dtype=torch.bool)
    forced[:, 0] = True
    mass = torch.cat(
        [oracle.block_mass(q, k, slots, grid, SCALE)[0] for q, k, _ in recorded.layers.values()]
    )
    sampled = {
        stride: torch.cat(
            [
                oracle.sampled_mass(q, k, slots, grid, stride, SCALE)[0]
                for q, k, _ in recorded.layers.values()
            ]
        )
        for stride in (4, 8)
    }
    estimates = torch.cat(
        [oracle.last_block(q, k, grid, SCALE)[0][0] for q, k, _ in recorded.layers.values()]
    )
    return SimpleNamespace(
        grid=grid, forced=forced, mass=mass, sampled=sampled, vertical=estimates,
        layer_of=[layer for layer in LAYERS for _ in range(HEADS)],
    )  # fmt: skip


def literal_recall(mass, masks, layer_of):
    """[LH, LH] by two loops: mass of a in the mask of b, mean over rows; -1: b is a later layer."""
    count = len(layer_of)
    result = np.full((count, count), -1.0)
    for a in range(count):
        for b in range(count):
            if layer_of[b] <= layer_of[a]:
                result[a, b] = (mass[a] * masks[b]).sum(-1).mean()
    return result


def test_output_is_exact_attention(recorded, oracle):
    grid = recorded.shard.grid
    full = torch.ones(1, HEADS, grid.num_rows, grid.num_cols, dtype=torch.bool)
    for (q, k, v), output in zip(recorded.layers.values(), recorded.outputs, strict=True):
        expected, _ = oracle.attention(q, k, v, full, grid, SCALE)
        torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-4)


def test_masks_are_gamma_masks_of_the_exact_mass_before_forcing(recorded, literal, oracle):
    shard = recorded.shard
    rows, cols = np.tril_indices(literal.grid.num_cols)
    expected = oracle.gamma_mask(literal.mass, 0.8).numpy()[:, rows, cols]
    np.testing.assert_array_equal(shard.unpack(), expected)
    with_forced = expected | forced_blocks(literal.grid)
    assert (with_forced != expected).any(), "the example must tell forced blocks apart"
    np.testing.assert_allclose(shard.density, with_forced.mean(-1), atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_recall_matrix_equals_a_literal_float64_one(recorded, literal, oracle, kind):
    own = literal.mass if kind == "exact" else literal.sampled[8]
    masks = oracle.gamma_mask(own, 0.8) | literal.forced
    found = getattr(recorded.shard, f"recall_{kind}")
    np.testing.assert_allclose(
        found, literal_recall(literal.mass, masks, literal.layer_of), atol=1e-5
    )
    assert recorded.shard.heads.tolist() == [[a, b] for a in LAYERS for b in range(HEADS)]


def test_last_row_divergences_equal_scipy(recorded, literal):
    from scipy.spatial.distance import jensenshannon

    size = literal.grid.block_size
    a_hat = np.stack([part.sum(-1).numpy() for part in literal.vertical.split(size, -1)], -1)
    uniform = np.full(a_hat.shape[1], 1 / a_hat.shape[1])
    for a in range(len(a_hat)):
        expected = jensenshannon(a_hat[a], uniform)
        assert recorded.shard.uniform_jsd[a] == pytest.approx(expected, abs=1e-4)
        for b in range(len(a_hat)):
            expected = jensenshannon(a_hat[a], a_hat[b])
            assert recorded.shard.a_hat_jsd[a, b] == pytest.approx(expected, abs=2e-3)


def column(candidate: Candidate) -> int:
    return default_candidates().index(candidate)


def test_sampled_candidate_is_measured_with_its_estimation_cost(recorded, literal, oracle):
    number = column(Candidate(assignment="sampled", gamma=0.9, stride=8))
    mask = oracle.gamma_mask(literal.sampled[8], 0.9) | literal.forced
    total = literal.grid.num_causal_blocks
    recall = (literal.mass * mask).sum(-1).mean(-1)
    shard = recorded.shard
    np.testing.assert_allclose(shard.candidate_recall[:, number], recall, atol=1e-5)
    cost = mask.sum((-2, -1)) / total + 0.5 / 8
    np.testing.assert_allclose(shard.candidate_cost[:, number], cost, atol=1e-5)


def test_further_lent_masks_and_oracles_are_measured_as_the_first_ones(recorded):
    base = record_settings(gamma=0.3)
    settings = record_settings(
        gamma=base.gamma,
        lending=(
            LentMask(gamma=base.gamma, stride=base.sample_stride),
            LentMask(gamma=0.99, stride=base.sample_stride),
        ),
        oracle_gammas=(base.gamma, 0.99),
        mask_settings=dataclasses.replace(base.mask_settings, local_blocks=1),
    )
    handler = RecordingHandler(settings, ReferenceKernels())
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    for layer, qkv in recorded.layers.items():
        handler.attend(layer, *qkv, SCALE)
    shard = handler.shard(recorded.shard.prompt)
    np.testing.assert_allclose(shard.lent_recall[0], shard.recall_sampled, atol=1e-3)
    np.testing.assert_array_equal(shard.lent_density[0], shard.sampled_density)
    assert (shard.lent_recall[1] >= shard.lent_recall[0] - 1e-3).all()
    np.testing.assert_allclose(shard.oracle_recall[:, 0], np.diag(shard.recall_exact), atol=1e-5)
    np.testing.assert_array_equal(shard.oracle_density[:, 0], shard.density)
    # A local block is kept whether the mass wants it or not.
    forced = forced_blocks(shard.grid, local_blocks=1)
    np.testing.assert_allclose((shard.unpack() | forced).mean(1), shard.density, atol=1e-6)
    without = (shard.unpack() | forced_blocks(shard.grid)).mean(1)
    assert (without < shard.density - 1e-6).any()


def test_streaming_candidate_covers_all_where_the_window_does(recorded):
    number = column(Candidate(assignment="streaming", window=1024))
    np.testing.assert_allclose(recorded.shard.candidate_recall[:, number], 1, atol=1e-5)
    np.testing.assert_allclose(recorded.shard.candidate_cost[:, number], 1, atol=1e-6)


def test_recall_of_a_candidate_grows_with_gamma(recorded):
    for kind in ("vertical_slash", "query_aware"):
        numbers = [n for n, c in enumerate(default_candidates()) if c.assignment == kind]
        recall = recorded.shard.candidate_recall[:, numbers]
        assert (np.diff(recall, axis=1) >= -1e-6).all()


def test_non_finite_attention_names_layer_and_head(random_qkv):
    handler = RecordingHandler(record_settings(), ReferenceKernels())
    q, k, v = random_qkv(0, 1, HEADS, 2, TOKENS, TOKENS, DIM)
    q[0, 2, 5, 0] = torch.nan
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    with pytest.raises(NonFiniteAttentionError, match="layer 2, head 2"):
        handler.attend(2, q, k, v, SCALE)


def test_batches_and_chunks_are_refused(random_qkv):
    handler = RecordingHandler(record_settings(), ReferenceKernels())
    with pytest.raises(UnsupportedError, match="one piece"):
        handler.begin(ForwardCall(q_len=100, kv_len=TOKENS, q_offset=200))
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    with pytest.raises(UnsupportedError, match="one prompt at a time"):
        handler.attend(0, *random_qkv(0, 2, HEADS, 2, TOKENS, TOKENS, DIM), SCALE)


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


BAD_SETTINGS = {
    "gamma 0": {"gamma": 0.0},
    "gamma over 1": {"gamma": 1.1},
    "gamma NaN": {"gamma": float("nan")},
    "block size": {"block_size": 96},
    "dtype": {"dtype": "int8"},
    "task": {"tasks": ("poetry",)},
    "no samples": {"samples": 0},
    "length": {"lengths": (0,)},
    "stride": {"sample_stride": 0},
    "budgets": {"min_budget": 256, "max_budget": 128},
    "bad share": {"max_bad_share": 1.0},
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_usage_errors_with_a_hint(name):
    with pytest.raises(UsageError) as caught:
        CalibrationConfig(model="x", **BAD_SETTINGS[name])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("longest", "block_size", "min_budget"),
    [(300, 64, 128), (2048, 64, 128), (8000, 64, 500), (8192, 128, 512), (131072, 128, 1024)],
)
def test_block_size_and_budget_follow_the_longest_prompt(longest, block_size, min_budget):
    config = CalibrationConfig(model="x")
    assert config.resolve_block_size(longest) == block_size
    assert config.resolve_min_budget(longest, block_size) == min_budget
