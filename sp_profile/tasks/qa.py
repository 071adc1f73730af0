"""RULER's question answering: the documents of a question among others of the same data set.

Template and construction are quoted from RULER (arXiv 2404.06654, scripts/data/synthetic/
{constants,qa}.py, Apache-2.0). Differences: questions come in a random order; the last document
added is cut where the length demands it; where a data set holds too little text, the prose of the
essay tasks follows as further documents.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sp_profile.tasks.fitting import Sketch
from sp_profile.tasks.haystack import Essay, Pages

_TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
_PREFIX = "Answer:"
_PROSE_WORDS = 120  # of a document of prose


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """documents: indices of the documents that answer it. related: others of its article."""

    query: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class QaData:
    """Questions in the order of the file, and the documents, sorted, each once."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class QaSketch:
    """document_words: units up to which the words are those of the data set; then comes prose."""

    sketch: Sketch
    document_words: int


def question_order(data: QaData, rng: random.Random) -> list[int]:
    """The questions in random order."""
    return rng.sample(range(len(data.questions)), len(data.questions))


def qa_sketch(
    question: Question, data: QaData, essay: Essay, rng: random.Random, words: int
) -> QaSketch:
    """Units are words of the documents that do not answer the question.

    words: as many as the prompt may need; related documents come first, as in RULER.
    """
    own = set(question.documents)
    related = [number for number in question.related if number not in own]
    rng.shuffle(related)
    apart = own | set(related)
    others = [number for number in range(len(data.documents)) if number not in apart]
    rng.shuffle(others)
    texts: list[str] = []
    total = 0
    for number in (*related, *others):
        if total >= words:
            break
        texts.append(data.documents[number])
        total += texts[-1].count(" ") + 1
    start = essay.random_start(rng)
    prose = essay.sentences(start, max(words - total, 0))
    texts += _documents_of_prose(prose)
    pages = Pages.of(texts)
    # Where each document stands, whatever comes after it.
    places = [rng.random() for _ in range(len(own) + len(pages.texts))]
    gold = [data.documents[number] for number in question.documents]

    def text(units: int, filler: str) -> str:
        shown = gold + pages.first(units)
        order = sorted(range(len(shown)), key=places.__getitem__)
        context = "\n\n".join(
            f"Document {place}:\n{shown[number]}" for place, number in enumerate(order, start=1)
        )
        return _TEMPLATE.format(context=filler + context, query=question.query)

    def unit(number: int) -> str:
        page, place = pages.page_of(number)
        word = pages.texts[page][place]
        return f" {word}" if place else f"\n\nDocument {page + len(gold) + 1}:\n{word}"

    sketch = Sketch(
        text=text, unit=unit, answers=question.answers, answer_prefix=_PREFIX, repeats=True
    )
    return QaSketch(sketch=sketch, document_words=total)


def _documents_of_prose(sentences: list[str]) -> list[str]:
    documents: list[list[str]] = [[]]
    for sentence in sentences:
        if sum(part.count(" ") + 1 for part in documents[-1]) >= _PROSE_WORDS:
            documents.append([])
        documents[-1].append(sentence)
    return [" ".join(parts) for parts in documents if parts]
