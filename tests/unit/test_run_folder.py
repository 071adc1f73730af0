"""The run folder: resuming, refusing, reading back, locks and journals."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from sp_profile.candidates import Candidate, MaskSettings
from sp_profile.journal import JournalEntry, append, read_journal
from sp_profile.lock import LOCK_NAME, folder_lock
from sp_profile.run_config import RunConfig, first_difference
from sp_profile.run_folder import create_or_resume, open_run
from sp_profile.shard import PromptShard, shard_to_bytes
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import CorruptArtefactError, FolderLockedError, UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.profile import PromptRecord
from sp_runtime.strict_json import decode, encode, parse

TOKENS, HEADS = 200, 2


def prompt(name: str) -> PromptRecord:
    return PromptRecord(sha256=hashlib.sha256(name.encode()).hexdigest(), tokens=TOKENS, task=name)


PROMPTS = tuple(sorted((prompt(name) for name in "abcd"), key=lambda p: p.sha256))


def make_config(**changes) -> RunConfig:
    fingerprint = ModelFingerprint(
        architecture="Llama",
        model_type="llama",
        num_layers=2,
        num_heads=HEADS,
        num_kv_heads=1,
        head_dim=64,
        layer_types=("sliding_attention", "full_attention"),
        rope="{}",
        max_position_embeddings=4096,
        config_sha256="0" * 64,
        weights_sha256=None,
    )
    config = RunConfig(
        model="tiny",
        revision=None,
        trust_remote_code=False,
        fingerprint=fingerprint,
        prompts=PROMPTS,
        dtype="float32",
        device="cpu",
        kernels="reference",
        block_size=64,
        gamma=0.9,
        sample_stride=8,
        seed=0,
        chat_template=False,
        max_bad_share=0.1,
        settings=MaskSettings(),
        candidates=(Candidate(assignment="streaming", window=64),),
        versions=(("torch", "2.13.0"),),
    )
    return dataclasses.replace(config, **changes)


def make_shard(record: PromptRecord, candidates: int = 1) -> PromptShard:
    grid = BlockGrid(q_len=TOKENS, kv_len=TOKENS, block_size=64)
    fill = int(record.sha256[:2], 16) / 255
    ones = np.full(HEADS, fill, dtype=np.float32)
    square = np.full((HEADS, HEADS), fill, dtype=np.float32)
    table = np.full((HEADS, candidates), fill, dtype=np.float32)
    return PromptShard(
        prompt=record,
        grid=grid,
        heads=np.array([(1, 0), (1, 1)], dtype=np.int32),
        masks=np.zeros((HEADS, 2), dtype=np.uint8),
        density=ones,
        recall_exact=square,
        recall_sampled=square,
        sampled_density=ones,
        uniform_jsd=ones,
        a_hat_jsd=square.astype(np.float16),
        candidate_cost=table,
        candidate_recall=table,
    )


def finish(path, config, prompts=PROMPTS):
    with create_or_resume(path, config) as folder:
        for record in prompts:
            folder.add(make_shard(record))
    return path


def shard_files(path):
    return {file.name: file.read_bytes() for file in sorted((path / "shards").iterdir())}


def test_config_round_trips_through_json():
    config = make_config()
    assert decode(RunConfig, parse(encode(config).encode(), "x"), "x") == config


def test_shards_come_back_in_order_of_prompt_whatever_the_order_of_work(tmp_path):
    forward = finish(tmp_path / "a", make_config())
    backward = finish(tmp_path / "b", make_config(), PROMPTS[::-1])
    order = [shard.prompt for shard in open_run(backward).shards()]
    assert order == list(PROMPTS)
    assert shard_files(forward) == shard_files(backward)


def test_resume_skips_what_is_finished(tmp_path):
    finish(tmp_path, make_config(), PROMPTS[:2])
    with pytest.raises(UsageError, match="unfinished: 2 of 4"):
        open_run(tmp_path)
    with create_or_resume(tmp_path, make_config()) as folder:
        assert folder.finished == {p.sha256 for p in PROMPTS[:2]}
        for record in PROMPTS[2:]:
            folder.add(make_shard(record))
    assert len(list(open_run(tmp_path).shards())) == 4


def test_quarantined_prompts_are_finished_and_have_no_shard(tmp_path):
    with create_or_resume(tmp_path, make_config()) as folder:
        folder.quarantine(PROMPTS[0].sha256, "NaN in layer 1")
        for record in PROMPTS[1:]:
            folder.add(make_shard(record))
    run = open_run(tmp_path)
    assert [entry.reason for entry in run.quarantined] == ["NaN in layer 1"]
    assert [shard.prompt for shard in run.shards()] == list(PROMPTS[1:])


CHANGES = {
    "gamma": {"gamma": 0.8},
    "settings.min_budget": {"settings": MaskSettings(min_budget=64)},
    "fingerprint.rope": {"fingerprint": dataclasses.replace(make_config().fingerprint, rope="[]")},
    "prompts": {"prompts": PROMPTS[:2]},
    "versions[0][1]": {"versions": (("torch", "2.12.0"),)},
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_configuration_is_refused_and_the_field_named(tmp_path, field):
    finish(tmp_path, make_config())
    before = shard_files(tmp_path)
    with (
        pytest.raises(UsageError) as caught,
        create_or_resume(tmp_path, make_config(**CHANGES[field])),
    ):
        pass
    assert f": {field}: " in caught.value.message
    assert shard_files(tmp_path) == before


def test_first_difference_of_equal_configurations_is_none():
    assert first_difference(make_config(), make_config()) is None


def test_other_folders_are_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"thesis\.tex"), create_or_resume(tmp_path, make_config()):
        pass
    with (
        pytest.raises(UsageError, match="not a folder"),
        create_or_resume(tmp_path / "thesis.tex", make_config()),
    ):
        pass
    with pytest.raises(UsageError, match="not a run folder"):
        open_run(tmp_path)


def test_left_over_of_a_killed_write_is_ignored_and_removed(tmp_path):
    left_over = tmp_path / ".run.json.0011223344556677.tmp"
    left_over.write_text("half")
    with create_or_resume(tmp_path, make_config()):
        assert not left_over.exists()


def test_partial_last_journal_line_is_ignored_and_overwritten(tmp_path):
    finish(tmp_path, make_config(), PROMPTS[:2])
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    for cut in (1, 30, len(whole) // 2 - 1):
        journal.write_bytes(whole[:-cut])
        finish(tmp_path, make_config(), PROMPTS[1:])
        assert len(list(open_run(tmp_path).shards())) == 4
        journal.write_bytes(whole)


def test_damaged_journal_line_is_refused(tmp_path):
    finish(tmp_path, make_config())
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    changed = json.loads(lines[1])
    changed["entry"]["bytes"] += 1
    journal.write_text(lines[0] + json.dumps(changed) + "\n" + "".join(lines[2:]))
    with pytest.raises(CorruptArtefactError, match=r"journal\.jsonl:2: checksum"):
        open_run(tmp_path)


def test_journal_of_another_run_is_refused(tmp_path):
    finish(tmp_path, make_config())
    append(tmp_path / "journal.jsonl", JournalEntry(unit="f" * 64, state="bad"))
    with pytest.raises(CorruptArtefactError, match="unknown unit"):
        open_run(tmp_path)


def test_last_entry_of_a_prompt_counts(tmp_path):
    path = tmp_path / "journal.jsonl"
    append(path, JournalEntry(unit="a", state="bad", reason="x"))
    append(path, JournalEntry(unit="a", state="done", bytes=3))
    entries, size = read_journal(path)
    assert entries["a"].state == "done"
    assert size == path.stat().st_size


def test_altered_shard_is_refused_and_a_missing_one_is_measured_again(tmp_path):
    finish(tmp_path, make_config())
    file = tmp_path / "shards" / f"{PROMPTS[1].sha256}.npz"
    original = file.read_bytes()
    file.write_bytes(shard_to_bytes(dataclasses.replace(make_shard(PROMPTS[1]), prompt=PROMPTS[0])))
    with pytest.raises(CorruptArtefactError, match=PROMPTS[1].sha256):
        list(open_run(tmp_path).shards())
    file.unlink()
    with create_or_resume(tmp_path, make_config()) as folder:
        assert PROMPTS[1].sha256 not in folder.finished
        folder.add(make_shard(PROMPTS[1]))
    assert file.read_bytes() == original
    assert len(list(open_run(tmp_path).shards())) == 4


def test_shard_that_does_not_belong_to_the_run_is_refused(tmp_path):
    with create_or_resume(tmp_path, make_config()) as folder:
        for record in PROMPTS:
            folder.add(make_shard(record, candidates=2))
    with pytest.raises(CorruptArtefactError, match="candidate_cost"):
        list(open_run(tmp_path).shards())


@pytest.mark.parametrize("text", ["", "{", '{"gamma": 1}', "[]", '{"gamma": NaN}'])
def test_damaged_run_json_is_refused(tmp_path, text):
    finish(tmp_path, make_config())
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CorruptArtefactError, match=r"run\.json"):
        open_run(tmp_path)


HOLD = textwrap.dedent(
    """
    import sys, pathlib
    from sp_profile.lock import folder_lock
    with folder_lock(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
    """
)


def test_second_process_is_refused_by_name_and_takes_over_a_dead_one(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(FolderLockedError, match=f"process {holder.pid} on ") as caught,
            create_or_resume(tmp_path, make_config()),
        ):
            pass
        assert caught.value.hint
        assert not (tmp_path / "run.json").exists()
        holder.kill()
        holder.wait()
        finish(tmp_path, make_config())
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    assert len(list(open_run(tmp_path).shards())) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_a_resource_error(tmp_path):
    from sp_runtime.errors import ResourceError

    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceError), create_or_resume(tmp_path / "run", make_config()):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("late_s", "named"), [(0.1, "in use by process 17 on"), (None, "in use by another process")]
)
def test_a_holder_that_has_not_said_its_name_yet_is_waited_for(tmp_path, late_s, named):
    with open(tmp_path / LOCK_NAME, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def say() -> None:
            held.write('{"pid": 17, "host": "there", "start": "now"}')
            held.flush()

        timer = threading.Timer(late_s or 0.0, say)
        if late_s is not None:
            timer.start()
        with pytest.raises(FolderLockedError, match=named), folder_lock(tmp_path):
            pass
        timer.cancel()
