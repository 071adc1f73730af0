"""InfiniteBench's files in their published form: prompts, answers, cutting, hostile lines."""

from __future__ import annotations

import hashlib
import json

import pytest

from sp_profile.scoring import score
from sp_profile.tasks import eval_task_groups
from sp_runtime.errors import UsageError

TASKS = eval_task_groups()["infinitebench"]
OPTIONS = ["alpha", "beta", "gamma", "delta"]
ROWS = {
    "longbook_sum_eng": {"input": "", "answer": ["It ends well."]},
    "longbook_qa_eng": {"input": "Who came?", "answer": ["Ann", "Ann Lee"]},
    "longbook_choice_eng": {"input": "Which?", "answer": ["gamma"], "options": OPTIONS},
    "longdialogue_qa_eng": {"input": "", "answer": ["MARLOW"]},
    "longbook_qa_chn": {"input": "\u8c01\uff1f", "answer": ["\u738b"]},
    "code_debug": {"input": "Which function?", "answer": "beta", "options": OPTIONS},
    "math_find": {
        "input": "You should answer with only one number. The largest number of the list is:",
        "answer": 97,
    },
    "passkey": {"input": "What is the pass key?", "answer": ["71432"]},
    "number_string": {"input": "What is the sequence of digits?", "answer": ["1122334455"]},
    "kv_retrieval": {"input": 'Key: "a"\nThe value', "answer": ["b-1"]},
}
RIGHT = {
    "longbook_sum_eng": " It ends well.",
    "longbook_qa_eng": "Ann Lee",
    "longbook_choice_eng": "C. gamma",
    "longdialogue_qa_eng": " Marlow",
    "longbook_qa_chn": "\u738b\u3002",
    "code_debug": " B. beta",
    "math_find": "97",
    "passkey": " 71432.",
    "number_string": " 1122334455",
    "kv_retrieval": '"b-1"',
}
NEW_TOKENS = {
    "longbook_sum_eng": 1200, "longbook_qa_eng": 40, "longbook_choice_eng": 40,
    "longdialogue_qa_eng": 40, "longbook_qa_chn": 40, "code_debug": 5, "math_find": 3,
    "passkey": 6, "number_string": 12, "kv_retrieval": 50,
}  # fmt: skip


def lines(name, count=3, words=800):
    base = {"id": 0, "options": [], **ROWS[name]}
    for number in range(count):
        context = f"begin{number} " + "filling " * words + f"end{number}"
        yield json.dumps({**base, "id": number, "context": context}, ensure_ascii=False)


@pytest.fixture
def folder(tmp_path):
    for name in ROWS:
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines(name)) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_prompt_and_score_of_every_task(folder, words, prompts, task):
    name = task.removeprefix("infinitebench_")
    made = prompts(task, words, 5000, samples=2, infinitebench=folder)
    assert [prompt.index for prompt in made] == [0, 1]
    for number, prompt in enumerate(made):
        assert f"begin{number} " in prompt.text
        assert f"end{number}" in prompt.text
        assert ROWS[name]["input"] in prompt.text or name == "code_debug"
        assert len(prompt.token_ids) < 5000  # its own length
        assert prompt.max_new_tokens == NEW_TOKENS[name]
        assert score(prompt.metric, RIGHT[name], prompt) == 1
        assert score(prompt.metric, "nothing", prompt) == 0
        path = folder / f"{name}.jsonl"
        assert prompt.data == hashlib.sha256(path.read_bytes()).hexdigest()


def test_templates_of_the_benchmark(folder, words, prompts):
    (prompt,) = prompts("infinitebench_longbook_choice_eng", words, 5000, infinitebench=folder)
    assert prompt.text.startswith("Read the book and answer the question.\n\nbegin0 ")
    assert prompt.text.endswith("end0\n\nQuestion: Which?\nA. alpha\nB. beta\nC. gamma\nD. delta\n")
    assert prompt.answer_prefix == "The letter of the correct answer is"
    assert prompt.answers == ("gamma", "C")
    assert prompt.choices == tuple(OPTIONS)
    (prompt,) = prompts("infinitebench_math_find", words, 5000, infinitebench=folder)
    assert prompt.text.startswith("What is the largest number in the following list?\n\nbegin0 ")
    assert prompt.answer_prefix == ""


@pytest.mark.parametrize("length", [200, 201, 512])
def test_long_examples_are_cut_in_the_middle(folder, smollm, prompts, length):
    task = "infinitebench_passkey"
    (whole,) = prompts(task, smollm, 8192, infinitebench=folder)
    (cut,) = prompts(task, smollm, length, infinitebench=folder)
    assert len(cut.token_ids) == length
    head = length // 2
    assert cut.token_ids[:head] == whole.token_ids[:head]
    assert cut.token_ids[head:] == whole.token_ids[-(length - head) :]
    shown = smollm.decode(cut.token_ids)
    assert "begin0" in shown
    assert "end0\n\nWhat is the pass key?" in shown


def test_very_long_context_is_cut_the_same_way(tmp_path, smollm, prompts):
    """Only its ends are tokenized; the tokens are those of the whole."""
    context = " ".join(f"word{n} and {n * n}" for n in range(12_000))
    row = {**ROWS["passkey"], "context": context}
    (tmp_path / "passkey.jsonl").write_text(json.dumps(row))
    length = 600
    (cut,) = prompts("infinitebench_passkey", smollm, length, infinitebench=tmp_path)
    (whole,) = prompts("infinitebench_passkey", smollm, 10**6, infinitebench=tmp_path)
    assert len(context) > 4 * 16 * length
    assert cut.token_ids == whole.token_ids[:300] + whole.token_ids[-300:]


def test_as_many_as_the_file_holds(folder, words, prompts):
    assert len(prompts("infinitebench_passkey", words, 900, samples=50, infinitebench=folder)) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "broken JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "broken JSON"),
        ('{"context": "a"}', "answer: is missing"),
        ('{"answer": "a"}', "context: is missing"),
        ('{"context": 5, "answer": "a"}', "context: not a string"),
        ('{"context": " ", "answer": "a"}', "context: is empty"),
        ('{"context": "a", "answer": []}', "answer: is empty"),
        ('{"context": "a", "answer": [true]}', r"answer\[0\]: not a string"),
        ('{"context": "a", "answer": "a", "input": 3}', "input: not a string"),
        ('{"context": "\\ud800", "answer": "a"}', "context: holds half a surrogate"),
        ("\udcff", "not UTF-8 at byte 0"),
    ],
)
def test_hostile_line_is_named(tmp_path, words, prompts, line, message):
    path = tmp_path / "passkey.jsonl"
    good = next(iter(lines("passkey")))
    path.write_text(f"{good}\n\n{line}\n", encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=rf"passkey\.jsonl:3.*{message}"):
        prompts("infinitebench_passkey", words, 900, samples=5, infinitebench=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ["a", "b", "c"]}, "options: not four different options"),
        ({"options": ["a", "b", "c", "c"]}, "options: not four different options"),
        ({"answer": "omega"}, "answer: is none of the options"),
    ],
)
def test_wrong_options_are_named(tmp_path, words, prompts, changes, message):
    row = {"context": "book", **ROWS["longbook_choice_eng"], **changes}
    (tmp_path / "longbook_choice_eng.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=rf"choice_eng\.jsonl:1\.{message}"):
        prompts("infinitebench_longbook_choice_eng", words, 900, infinitebench=tmp_path)


def test_letter_as_the_answer(tmp_path, words, prompts):
    row = {"context": "code", **ROWS["code_debug"], "answer": ["beta", "B"]}
    (tmp_path / "code_debug.jsonl").write_text(json.dumps(row))
    (prompt,) = prompts("infinitebench_code_debug", words, 900, infinitebench=tmp_path)
    assert prompt.answers == ("beta", "B")


def test_missing_folder_and_file_name_the_task(tmp_path, words, prompts):
    with pytest.raises(UsageError, match=r"infinitebench_passkey reads passkey\.jsonl"):
        prompts("infinitebench_passkey", words, 900)
    with pytest.raises(UsageError, match="no such file; task infinitebench_passkey reads it"):
        prompts("infinitebench_passkey", words, 900, infinitebench=tmp_path)
    (tmp_path / "passkey.jsonl").write_text("\n\n")
    with pytest.raises(UsageError, match="holds no example"):
        prompts("infinitebench_passkey", words, 900, infinitebench=tmp_path)
