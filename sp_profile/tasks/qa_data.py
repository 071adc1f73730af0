"""SQuAD and HotpotQA files in their published formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sp_profile.tasks.qa import QaData, Question
from sp_profile.tasks.task_files import TaskFile, field_of, parse_json
from sp_runtime.errors import UsageError


def read_squad(file: TaskFile) -> QaData:
    """SQuAD v1.1 or v2.0 (rajpurkar.github.io/SQuAD-explorer); unanswerable questions are left out.

    A document is a paragraph; the other paragraphs of an article are related to it.
    Raises UsageError that names the place.
    """
    articles: list[list[tuple[str, Any, str]]] = []
    for article, where in _items(parse_json(file), "data", file.name):
        articles.append(
            [
                (field_of(paragraph, "context", str, place), paragraph, place)
                for paragraph, place in _items(article, "paragraphs", where)
            ]
        )
    documents = sorted({text for article in articles for text, _, _ in article if text.strip()})
    number = {text: place for place, text in enumerate(documents)}
    questions = []
    for paragraphs in articles:
        numbers = [number[text] for text, _, _ in paragraphs if text in number]
        for text, paragraph, where in paragraphs:
            for entry, place in _items(paragraph, "qas", where):
                query = field_of(entry, "question", str, place)
                if "is_impossible" in entry and field_of(entry, "is_impossible", bool, place):
                    continue
                answers = tuple(
                    dict.fromkeys(
                        field_of(answer, "text", str, spot)
                        for answer, spot in _items(entry, "answers", place)
                    )
                )
                _require(text in number, f"{where}.context: is empty")
                _check_answers(query, answers, place)
                own = number[text]
                related = tuple(dict.fromkeys(each for each in numbers if each != own))
                questions.append(
                    Question(query=query, answers=answers, documents=(own,), related=related)
                )
    return _data(questions, documents, file)


def read_hotpotqa(file: TaskFile) -> QaData:
    """HotpotQA (hotpotqa.github.io), distractor setting: all paragraphs of a question are shown.

    A document is a title, a line break and the sentences. Raises UsageError that names the place.
    """
    rows = parse_json(file)
    _require(isinstance(rows, list), f"{file.name}: not a JSON array")
    entries = []
    for index in range(len(rows)):
        row = field_of(rows, index, dict, file.name)
        where = f"{file.name}[{index}]"
        texts = [_hotpot_document(part, place) for part, place in _items(row, "context", where)]
        _require(bool(texts), f"{where}.context: is empty")
        query, answer = (field_of(row, key, str, where) for key in ("question", "answer"))
        _check_answers(query, (answer,), where)
        entries.append((query, answer, texts))
    documents = sorted({text for _, _, texts in entries for text in texts})
    number = {text: place for place, text in enumerate(documents)}
    questions = [
        Question(
            query=query,
            answers=(answer,),
            documents=tuple(dict.fromkeys(number[text] for text in texts)),
        )
        for query, answer, texts in entries
    ]
    return _data(questions, documents, file)


def _hotpot_document(part: Any, where: str) -> str:
    title = field_of(part, 0, str, where)
    sentences = field_of(part, 1, list, where)
    texts = [field_of(sentences, place, str, f"{where}[1]") for place in range(len(sentences))]
    return f"{title}\n{''.join(texts)}"


def _items(value: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    """The members of an array, each with its place."""
    for place, item in enumerate(field_of(value, key, list, where)):
        yield item, f"{where}.{key}[{place}]"


def _check_answers(query: str, answers: tuple[str, ...], where: str) -> None:
    _require(bool(query.strip()), f"{where}.question: is empty")
    _require(bool(answers) and all(a.strip() for a in answers), f"{where}: has no answer")


def _data(questions: list[Question], documents: list[str], file: TaskFile) -> QaData:
    _require(bool(questions), f"{file.name}: holds no question that has an answer")
    return QaData(questions=tuple(questions), documents=tuple(documents))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)
