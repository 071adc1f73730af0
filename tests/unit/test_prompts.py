"""Prompt files, good and bad, and their tokens."""

from __future__ import annotations

import io
import sys

import pytest

from sp_profile.prompts import PromptText, encode, read_prompts
from sp_runtime.errors import UsageError


@pytest.fixture(scope="module")
def tokenizer(helper):
    return helper("tiny_models").make_tokenizer()


def test_text_file_is_one_prompt_without_bom_and_cr(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    (prompt,) = read_prompts([str(file)]).prompts
    assert prompt.text == "one\ntwo\n"
    assert prompt.name == str(file)


def test_json_lines_take_prompt_or_text_and_labels(tmp_path):
    file = tmp_path / "a.jsonl"
    line = '{"prompt": "x", "task": "qa", "id": 7, "answer_prefix": "It is"}'
    file.write_text(line + '\n\n{"text": "y"}\n')
    first, second = read_prompts([str(file)]).prompts
    assert (first.text, first.task, first.name) == ("x", "qa", "7")
    assert (first.answer_prefix, second.answer_prefix) == ("It is", "")
    assert (second.text, second.task, second.name) == ("y", "", f"{file}:3")


def test_folder_is_read_in_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "c.md").write_text("not a prompt")
    assert [p.text for p in read_prompts([str(tmp_path)]).prompts] == ["first", "second"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    assert read_prompts(["-"]).prompts[0].text == "from a pipe"


BAD = {
    "missing.txt": (None, "no such file"),
    "empty.txt": (b" \n", "empty"),
    "latin1.txt": (b"caf\xe9", "not UTF-8 at byte 3"),
    "bom_latin1.txt": (b"\xef\xbb\xbfcaf\xe9", "not UTF-8 at byte 6"),
    "binary.txt": (b"ELF\0", "NUL at byte 3"),
    "kind.md": (b"x", "unknown kind"),
    "broken.jsonl": (b'{"text": "x"}\n{"text": \n', "broken.jsonl:2: broken JSON"),
    "deep.jsonl": (b"[" * 100_000, "deep.jsonl:1: broken JSON"),
    "list.jsonl": (b"[1]", "list.jsonl:1: not a JSON object"),
    "number.jsonl": (b'{"text": 3}', "no text under"),
    "task.jsonl": (b'{"text": "x", "task": 3}', "must be text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_a_usage_error_that_names_it(tmp_path, name):
    content, message = BAD[name]
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts([str(file)])
    assert name in caught.value.message


def test_folder_without_prompts(tmp_path):
    with pytest.raises(UsageError, match=r"no \.txt or \.jsonl"):
        read_prompts([str(tmp_path)])


def test_keep_going_returns_the_good_ones_and_every_problem(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{\n{"text": "y"}')
    (tmp_path / "b.txt").write_bytes(b"\xff")
    read = read_prompts([str(tmp_path), str(tmp_path / "gone.txt")], keep_going=True)
    assert [p.text for p in read.prompts] == ["x", "y"]
    assert [p.message.split("/")[-1][:9] for p in read.problems] == [
        "a.jsonl:2",
        "b.txt: no",
        "gone.txt:",
    ]


def test_keep_going_without_any_prompt_still_fails(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_prompts([str(tmp_path / "gone.txt")], keep_going=True)


def test_identity_depends_on_text_prefix_and_chat_flag_only():
    prompt = PromptText(text="x", name="a", task="t")
    assert prompt.sha256(True) == PromptText(text="x", name="b").sha256(True)
    others = {
        prompt.sha256(False),
        PromptText(text="y", name="a").sha256(True),
        PromptText(text="x", name="a", answer_prefix="p").sha256(True),
    }
    assert len(others | {prompt.sha256(True)}) == 4


def test_encode_puts_the_text_into_a_chat_turn_and_opens_the_answer(tokenizer):
    prompt = PromptText(text="The sky is", name="a", answer_prefix="blue")
    ids = encode(prompt, tokenizer, chat_template=True)
    expected = "<|im_start|>user\nThe sky is<|im_end|>\n<|im_start|>assistant\nblue"
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode(encode(prompt, tokenizer, chat_template=False)) == "The sky is\nblue"


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(tokenizer):
    prompt = PromptText(text="sky " * 50, name="a.txt")
    count = len(encode(prompt, tokenizer, chat_template=False))
    assert len(encode(prompt, tokenizer, chat_template=False, max_tokens=count)) == count
    with pytest.raises(UsageError, match=rf"a.txt: {count} tokens.*context of {count - 1}"):
        encode(prompt, tokenizer, chat_template=False, max_tokens=count - 1)


def test_missing_chat_template_is_refused(tokenizer):
    class Bare:
        chat_template = None

    with pytest.raises(UsageError, match="no chat template"):
        encode(PromptText(text="x", name="a"), Bare(), chat_template=True)
