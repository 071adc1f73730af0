"""Calibration by two processes that torchrun started: the same shards as one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sp_profile.calibrate import calibrate
from sp_profile.calibration_config import CalibrationConfig

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def shard_files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "shards").iterdir()}


@pytest.fixture
def request_of(tiny_model, tmp_path):
    """(prompts, options of the command) of a calibration of four short prompts."""
    prompts = tmp_path / "prompts.jsonl"
    texts = [f"Here we go. The {word} is blue. " * 12 for word in ("sky", "sea", "sun", "ice")]
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = str(tiny_model)
    return prompts, ["calibrate", "--model", model, "--prompts", str(prompts), "--device", "cpu"]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", "-m", "sp_cli.profile_main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_ranks_of_torchrun_make_the_shards_of_one_process(request_of, tmp_path):
    prompts, options = request_of
    config = CalibrationConfig(model=options[2], prompts=(str(prompts),), device="cpu")
    calibrate(config, tmp_path / "alone")
    done = torchrun(*options, "-o", str(tmp_path / "group"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # one document: the other rank prints nothing
    assert (document["prompts"], document["measured"]) == (4, 4)
    assert shard_files(tmp_path / "group") == shard_files(tmp_path / "alone")
    run_files = [(tmp_path / name / "run.json").read_bytes() for name in ("alone", "group")]
    assert run_files[0] == run_files[1]
    assert calibrate(config, tmp_path / "group").resumed == 4
