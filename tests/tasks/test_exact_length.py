"""Every prompt of a cell has exactly the tokens asked for, whatever the tokenizer."""

from __future__ import annotations

import pytest

from sp_profile.prompts import PromptText, encode
from sp_profile.tasks import eval_task_groups
from sp_profile.tasks import fitting as fitting_module
from sp_runtime.errors import UsageError

GROUPS = eval_task_groups()
FITTED = (*GROUPS["ruler"], "json_kv")
NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32, "json_kv": 50}


@pytest.mark.parametrize("task", FITTED)
@pytest.mark.parametrize("length", [1024, 4096])
def test_real_tokenizer(smollm, prompts, task, length):
    made = prompts(task, smollm, length, samples=2)
    assert len(made) == 2
    for index, prompt in enumerate(made):
        assert (prompt.task, prompt.index, prompt.length) == (task, index, length)
        assert len(prompt.token_ids) == length
        again = PromptText(text=prompt.text, name="", answer_prefix=prompt.answer_prefix)
        assert encode(again, smollm, chat_template=True) == prompt.token_ids
        assert prompt.sha256 == again.sha256(True)
        assert prompt.max_new_tokens == NEW_TOKENS.get(task, 128)
        assert prompt.metric == "string_match_" + ("part" if task[:2] == "qa" else "all")


@pytest.mark.parametrize("task", FITTED)
def test_without_chat_template(smollm, prompts, task):
    (prompt,) = prompts(task, smollm, 1500, chat=False)
    assert len(prompt.token_ids) == 1500
    shown = smollm.decode(prompt.token_ids)
    assert shown.endswith(f"\n{prompt.answer_prefix}")
    assert "<|im_start|>" not in shown


@pytest.mark.parametrize("task", FITTED)
def test_crude_tokenizer(tiny, prompts, task):
    for prompt in prompts(task, tiny, 6000, samples=2):
        assert len(prompt.token_ids) == 6000


@pytest.mark.parametrize("task", FITTED)
def test_tokenizer_with_bos_and_spaces_in_front(with_bos, prompts, task):
    for prompt in prompts(task, with_bos, 3001, samples=2):
        assert len(prompt.token_ids) == 3001
        assert prompt.token_ids[0] == with_bos.bos_token_id


@pytest.mark.parametrize("length", range(300, 320))
def test_every_length_of_a_range(smollm, prompts, length):
    (prompt,) = prompts("niah_multikey_3", smollm, length)
    assert len(prompt.token_ids) == length


@pytest.mark.parametrize("task", FITTED)
def test_too_short_is_refused_with_the_least_length(smollm, prompts, task):
    with pytest.raises(UsageError, match=rf"task {task} takes at least \d+ tokens"):
        prompts(task, smollm, 60)


def test_two_tokenizations_of_the_whole(smollm, prompts, monkeypatch):
    """The third is the exception; guessing costs two small ones and at most one more, once."""
    whole = []
    real = fitting_module.encode

    def counted(*args, **options):
        ids = real(*args, **options)
        whole.append(len(ids))
        return ids

    monkeypatch.setattr(fitting_module, "encode", counted)
    samples = 3
    for task in FITTED:
        whole.clear()
        prompts(task, smollm, 3000, samples=samples)
        assert sum(whole) <= 3000 * (2.5 * samples + 1.5), task
