"""Real calibrations that are killed, raced and interrupted; `kill_runs.py` does it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("SP_KILLS", "10"))  # `make test-long` asks for 200


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The rows that the script wrote."""
    target = tmp_path_factory.mktemp("kills") / "rows.json"
    script = Path(__file__).with_name("kill_runs.py")
    command = [sys.executable, str(script), "--kills", str(KILLS), "--json", str(target)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environ.pop(name, None)
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, check=False, timeout=3000
    )
    assert target.exists(), done.stderr
    return json.loads(target.read_text())


def test_every_killed_run_resumes_to_the_same_id(found):
    assert len(found["kills"]) == KILLS
    assert all(row["same_id"] for row in found["kills"])
    assert sum(row["code"] == -signal.SIGKILL for row in found["kills"]) > KILLS / 2


def test_eight_racing_processes_leave_a_valid_run(found):
    codes = found["race"]["codes"]
    assert len(codes) == 8
    assert set(codes) <= {0, 7}
    assert 0 in codes
    assert found["race"]["refused_by_name"]
    assert found["race"]["same_id"]


def test_second_process_is_refused_by_name_until_the_holder_dies(found):
    assert found["refusal"] == {"code": 7, "named": True, "same_id": True}


def test_interruption_keeps_finished_prompts_and_says_how_to_resume(found):
    assert found["interrupt"]["code"] == 130
    assert "run the same command again" in found["interrupt"]["text"]
    assert found["interrupt"]["kept"] >= 1
    assert found["interrupt"]["same_id"]


def test_two_ranks_share_a_run_and_only_the_first_speaks(found):
    group = found["group"]
    assert group["codes"] == [0, 0]
    assert group["complete"]
    assert group["same_id"]
    assert "measured 4" in group["texts"][0]
    assert group["texts"][1] == ""


def test_run_of_a_killed_rank_is_finished_by_the_first(found):
    group = found["group, rank 1 killed"]
    assert group["codes"][0] == 0
    assert group["complete"]
    assert group["same_id"]


@pytest.mark.parametrize("victim", [0, 1])
def test_stranger_is_refused_while_a_member_lives(found, victim):
    group = found[f"group, rank {victim} killed"]
    code, text = group["stranger"]
    assert code in (0, 7)  # 0: the group had ended by then
    if code == 7:
        assert "(first of 2)" in text
    assert group["same_id"]
