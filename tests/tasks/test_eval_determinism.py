"""The same cell gives the same prompts everywhere, and none that a calibration has seen."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from sp_profile.tasks import (
    TASKS,
    eval_task_groups,
    eval_task_names,
    make_prompt,
    make_prompts,
    resolve_tasks,
)
from sp_profile.words import NOUNS
from sp_runtime.errors import UsageError

GROUPS = eval_task_groups()
FITTED = (*GROUPS["ruler"], "json_kv")
# sha256 of the first two prompts of each task: results name prompts by hash, so that a changed
# wording must be noticed.
GOLDEN = {
    "niah_single_1": "b4ecd0722f6b",
    "niah_single_2": "433ab196e05b",
    "niah_single_3": "d20711017a08",
    "niah_multikey_1": "e9c133ed048e",
    "niah_multikey_2": "c75f4d62a819",
    "niah_multikey_3": "56780709e1a0",
    "niah_multivalue": "cd9fa211d8c3",
    "niah_multiquery": "5d0d3031d962",
    "vt": "8640d4dd06c2",
    "cwe": "3da3c8dd28e3",
    "fwe": "d0e57670bad6",
    "qa_1": "03d397dea9d7",
    "qa_2": "9aaf190a235c",
    "json_kv": "ab797b492669",
}


def digest(made):
    return hashlib.sha256("".join(prompt.sha256 for prompt in made).encode()).hexdigest()[:12]


def test_thirteen_tasks_of_ruler_and_ten_of_infinitebench():
    assert len(GROUPS["ruler"]) == 13
    assert len(GROUPS["infinitebench"]) == 10
    assert len(GROUPS["retrieval"]) == 9
    assert set(eval_task_names()) == {name for names in GROUPS.values() for name in names}


@pytest.mark.parametrize("task", FITTED)
def test_first_prompts_stay_what_they_are(smollm, prompts, task):
    assert digest(prompts(task, smollm, 2048, samples=2)) == GOLDEN[task]


@pytest.mark.parametrize("task", FITTED)
def test_index_alone_decides(smollm, prompts, task):
    """Whether few or many are asked for, and whichever prompt came before."""
    three, two = (prompts(task, smollm, 1500, samples=n) for n in (3, 2))
    assert three[:2] == two
    assert len({prompt.text for prompt in three}) == 3


@pytest.mark.parametrize("task", ["niah_single_2", "vt", "cwe", "qa_1"])
def test_seed_and_length_change_the_prompt(smollm, prompts, task):
    texts = {
        prompts(task, smollm, length, seed=seed)[0].text
        for seed, length in ((0, 1500), (1, 1500), (0, 1501))
    }
    assert len(texts) == 3


def test_other_process_and_hash_seed_make_the_same(words, prompts):
    code = (
        "from sp_profile.tasks import make_prompts\n"
        "class T:\n"
        "    chat_template = None\n"
        "    def __call__(self, text, add_special_tokens=True):\n"
        "        return {'input_ids': list(range(len(text.split())))}\n"
        "for task in ('qa_2', 'cwe', 'niah_multikey_2'):\n"
        "    p = next(make_prompts(task, tokenizer=T(), length=1200, samples=1, seed=3,"
        " chat_template=False))\n"
        "    print(p.sha256)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "LC_ALL": "C"},
    )
    here = [
        prompts(task, words, 1200, seed=3)[0].sha256 for task in ("qa_2", "cwe", "niah_multikey_2")
    ]
    assert done.stdout.split() == here


def test_no_key_of_calibration_is_in_an_evaluation(words, prompts):
    """Calibration takes its keys from the first half of the nouns."""
    first = NOUNS[: len(NOUNS) // 2]
    for task in GROUPS["ruler"][:8]:
        for prompt in prompts(task, words, 700, samples=3):
            keys = {w.split("-")[1] for w in prompt.text.split() if w.count("-") == 1}
            assert keys.isdisjoint(first), task


def test_prompts_of_both_splits_are_others(words, prompts):
    made = [p for task in FITTED for p in prompts(task, words, 900, samples=2)]
    hashes = {
        make_prompt(
            task, 900, words, chat_template=False, seed=seed, index=index, split=split
        ).sha256(False)
        for task in TASKS
        for seed in (0, 1)
        for index in (0, 1)
        for split in ("calibration", "heldout")
    }
    assert hashes.isdisjoint(prompt.sha256 for prompt in made)


def test_an_own_prompt_has_the_hash_that_a_profile_records(tiny, prompts, tmp_path):
    from sp_profile.prompts import read_prompts

    path = tmp_path / "mine.txt"
    path.write_text("What is this about?")
    (read,) = read_prompts([str(path)]).prompts
    made = prompts("agreement", tiny, 500, prompts=(str(path),))
    assert read.sha256(True) in [prompt.sha256 for prompt in made]


def test_tasks_by_name_and_group():
    assert resolve_tasks("vt, ppl,vt") == ("vt", "ppl")
    assert resolve_tasks("json_kv,retrieval") == ("json_kv", *GROUPS["retrieval"][:-1])
    with pytest.raises(UsageError, match="unknown evaluation task 'niah_singel_1'") as caught:
        resolve_tasks("niah_singel_1")
    assert caught.value.hint == "did you mean niah_single_1?"
    with pytest.raises(UsageError, match="no tasks were given"):
        resolve_tasks(" ,")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "vtt"}, "unknown evaluation task 'vtt'"),
        ({"samples": 0}, "samples 0 is under 1"),
        ({"length": 0}, "length 0 is under 1"),
    ],
)
def test_wrong_arguments_are_refused_at_once(words, changes, message):
    arguments = {"task": "vt", "length": 500, "samples": 1, "seed": 0, "chat_template": False}
    with pytest.raises(UsageError, match=message):
        make_prompts(tokenizer=words, **(arguments | changes))
