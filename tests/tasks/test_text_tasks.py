"""Windows of a text for perplexity, and the user's own prompts."""

from __future__ import annotations

import json

import pytest

from sp_profile.prompts import encode, read_prompts
from sp_runtime.errors import UsageError


def test_windows_follow_one_another(smollm, prompts, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"Line {n} of the log." for n in range(500)))
    ids = smollm(path.read_text(), add_special_tokens=False)["input_ids"]
    made = prompts("ppl", smollm, 700, samples=100, text=path)
    assert len(made) == len(ids) // 700
    for number, prompt in enumerate(made):
        assert prompt.token_ids == tuple(ids[700 * number : 700 * (number + 1)])
        assert (prompt.metric, prompt.max_new_tokens, prompt.answers) == ("nll", 0, ())
        assert prompt.text == smollm.decode(prompt.token_ids)
    assert len({prompt.sha256 for prompt in made}) == len(made)


def test_beginning_token_is_part_of_the_window(with_bos, prompts):
    first, second = prompts("ppl", with_bos, 101, samples=2)
    ids = with_bos(first.text + second.text, add_special_tokens=False)["input_ids"]
    assert first.token_ids[0] == second.token_ids[0] == with_bos.bos_token_id
    assert len(first.token_ids) == len(second.token_ids) == 101
    assert first.data == "built-in sample"
    assert abs(len(ids) - 200) <= 2


def test_text_that_does_not_fill_a_window_is_refused(smollm, prompts, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Too short.")
    with pytest.raises(UsageError, match=r"short\.txt: \d+ tokens do not fill a window of 512"):
        prompts("ppl", smollm, 512, text=path)
    with pytest.raises(UsageError, match="at least 2 tokens"):
        prompts("ppl", smollm, 1)


def test_sample_fills_a_window_of_32k(smollm, prompts):
    assert len(prompts("ppl", smollm, 32_768, samples=3)) == 1


def test_own_prompts_keep_their_length(smollm, prompts, tmp_path):
    (tmp_path / "a.txt").write_text("Tell me a story.")
    rows = [{"prompt": "Sum up: " + "word " * n, "answer_prefix": "In short:"} for n in (5, 50)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = read_prompts([str(tmp_path)]).prompts
    made = prompts("agreement", smollm, 4000, samples=9, prompts=(str(tmp_path),))
    assert [p.token_ids for p in made] == [encode(p, smollm, chat_template=True) for p in read]
    assert [p.sha256 for p in made] == [p.sha256(True) for p in read]
    assert {p.metric for p in made} == {"agreement"}
    assert len(prompts("agreement", smollm, 4000, samples=2, prompts=(str(tmp_path),))) == 2


def test_own_prompts_are_never_cut(smollm, prompts, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 100)
    with pytest.raises(UsageError, match="more than the model's context of 64"):
        prompts("agreement", smollm, 64, prompts=(str(path),))
    with pytest.raises(UsageError, match="none were given"):
        prompts("agreement", smollm, 64)
    with pytest.raises(UsageError, match="no such file"):
        prompts("agreement", smollm, 64, prompts=(str(tmp_path / "missing.txt"),))
