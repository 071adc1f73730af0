"""SQuAD, HotpotQA and plain-text files: read as published, refused with the place of a problem."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from sp_profile.tasks.qa_data import read_hotpotqa, read_squad
from sp_profile.tasks.task_files import read_task_file
from sp_runtime.errors import UsageError

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "The Lune is short. It is cold.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Which river is short?",
                            "answers": [
                                {"text": "Lune", "answer_start": 4},
                                {"text": "The Lune", "answer_start": 0},
                                {"text": "Lune", "answer_start": 4},
                            ],
                            "is_impossible": False,
                        },
                        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "The Wend is long.", "qas": []},
            ],
        },
        {
            "title": "Hills",
            "paragraphs": [
                {
                    "context": "A hill is low.",
                    "qas": [
                        {
                            "id": "3",
                            "question": "What is low?",
                            "answers": [{"text": "A hill", "answer_start": 0}],
                        }
                    ],
                }
            ],
        },
    ],
}
HOTPOT = [
    {
        "_id": "a",
        "question": "Who was born where the Lune ends?",
        "answer": "Ann",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Lune", 0]],
        "context": [["Lune", ["It ends in Kell.", " It is cold."]], ["Kell", ["Ann is of it."]]],
    },
    {
        "_id": "b",
        "question": "Is it cold?",
        "answer": "yes",
        "context": [["Lune", ["It ends in Kell.", " It is cold."]]],
    },
]


def written(tmp_path, value):
    path = tmp_path / "data.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_task_file(path, "qa", "")


def changed(value, place, new):
    """A copy with the value at `place` replaced, or removed for new=None."""
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def test_squad(tmp_path):
    data = read_squad(written(tmp_path, SQUAD))
    assert data.documents == (
        "A hill is low.",
        "The Lune is short. It is cold.",
        "The Wend is long.",
    )
    first, second = data.questions
    assert first.query == "Which river is short?"
    assert first.answers == ("Lune", "The Lune")
    assert (first.documents, first.related) == ((1,), (2,))
    assert (second.answers, second.documents, second.related) == (("A hill",), (0,), ())


def test_hotpotqa(tmp_path):
    data = read_hotpotqa(written(tmp_path, HOTPOT))
    assert data.documents == ("Kell\nAnn is of it.", "Lune\nIt ends in Kell. It is cold.")
    assert [q.documents for q in data.questions] == [(1, 0), (1,)]
    assert [q.answers for q in data.questions] == [("Ann",), ("yes",)]


PARAGRAPH = ("data", 0, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (("data",), None, r"data.json.data: is missing"),
        (("data",), {}, r"data: not an array"),
        (("data", 1), "hill", r"data\[1\]: not a JSON object"),
        ((*PARAGRAPH, "context"), 7, r"data\[0\].paragraphs\[0\].context: not a string"),
        ((*PARAGRAPH, "context"), " ", r"paragraphs\[0\].context: is empty"),
        ((*PARAGRAPH, "context"), "\ud800", r"paragraphs\[0\].context: holds half a surrogate"),
        ((*QUESTION, "question"), None, r"qas\[0\].question: is missing"),
        ((*QUESTION, "question"), "", r"qas\[0\].question: is empty"),
        ((*QUESTION, "is_impossible"), "no", r"qas\[0\].is_impossible: not true or false"),
        ((*QUESTION, "answers"), [], r"qas\[0\]: has no answer"),
        ((*QUESTION, "answers", 1, "text"), [], r"answers\[1\].text: not a string"),
        ((*QUESTION, "answers", 1, "text"), " ", r"qas\[0\]: has no answer"),
    ],
)
def test_broken_squad_is_refused_with_its_place(tmp_path, place, new, message):
    with pytest.raises(UsageError, match=message):
        read_squad(written(tmp_path, changed(SQUAD, place, new)))


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ((1,), [], r"data.json\[1\]: not an object"),
        ((0, "answer"), True, r"\[0\].answer: not a string"),
        ((0, "context"), [], r"\[0\].context: is empty"),
        ((0, "context", 1), ["Kell"], r"\[0\].context\[1\]\[1\]: is missing"),
        ((0, "context", 1, 1, 0), 5, r"\[0\].context\[1\]\[1\]\[0\]: not a string"),
    ],
)
def test_broken_hotpotqa_is_refused_with_its_place(tmp_path, place, new, message):
    with pytest.raises(UsageError, match=message):
        read_hotpotqa(written(tmp_path, changed(HOTPOT, place, new)))


@pytest.mark.parametrize("read", [read_squad, read_hotpotqa])
@pytest.mark.parametrize("text", ["{", "[1] 2", "[" * 100_000, "7", "null", '{"data": []}', "[]"])
def test_no_data_set_at_all(tmp_path, read, text):
    with pytest.raises(UsageError, match=r"data\.json"):
        read(written(tmp_path, text))


def test_used_file_is_named_by_its_hash(tmp_path, words, prompts):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(SQUAD))
    made = prompts("qa_1", words, 100, samples=5, squad=path)
    assert len(made) == 2  # as many as there are questions
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(prompt.data == f"{digest}+built-in sample" for prompt in made)


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("niah_single_2", "essay"),
        ("niah_multiquery", "essay"),
        ("qa_1", "squad"),
        ("qa_2", "hotpotqa"),
        ("qa_2", "essay"),
        ("ppl", "text"),
    ],
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; task {} reads it"),
        (b"", "file is empty"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"a\0b", "NUL at byte 1"),
    ],
)
def test_unusable_file_is_refused_with_the_task(
    tmp_path, words, prompts, task, file, content, message
):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message.format(task)) as caught:
        prompts(task, words, 2000, **{file: path})
    assert task in str(caught.value)


def test_folder_is_not_a_file(tmp_path, words, prompts):
    with pytest.raises(UsageError, match="is not a file"):
        prompts("niah_single_2", words, 500, essay=tmp_path)


def test_bom_and_crlf_make_no_difference(tmp_path, words, prompts):
    text = "One. Two is here. Three!\n" * 50
    plain, windows = tmp_path / "a", tmp_path / "b"
    plain.write_bytes(text.encode())
    windows.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    first, second = (prompts("niah_single_2", words, 300, essay=p)[0] for p in (plain, windows))
    assert first.text == second.text
    assert first.data != second.data
