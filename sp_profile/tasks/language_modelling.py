"""Long-text perplexity: windows of a text, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from sp_profile.prompts import PromptText
from sp_profile.tasks.cell import Cell
from sp_profile.tasks.eval_prompt import EvalPrompt
from sp_profile.tasks.task_files import read_task_file
from sp_runtime.errors import UsageError


def perplexity_prompts(cell: Cell, sample: str) -> Iterator[EvalPrompt]:
    """Window i is tokens [i * n, (i + 1) * n) of the text, n being the cell's length.

    No chat template; the special tokens that the tokenizer puts before a text come first and count.
    Raises UsageError where the text does not fill one window.
    """
    file = read_task_file(cell.data.text, cell.task, sample)
    start = _leading_tokens(cell)
    ids = cell.tokenizer(file.text, add_special_tokens=False)["input_ids"]
    width = cell.length - len(start)
    if width < 2:
        raise UsageError(f"task {cell.task} needs at least {len(start) + 2} tokens")
    if len(ids) < width:
        raise UsageError(
            f"{file.name}: {len(ids)} tokens do not fill a window of {cell.length}",
            hint=f"give task {cell.task} a longer text, or a smaller length",
        )
    for index in range(min(cell.samples, len(ids) // width)):
        window = ids[index * width : (index + 1) * width]
        text = PromptText(
            text=cell.tokenizer.decode(window, clean_up_tokenization_spaces=False),
            name=cell.name(index),
            task=cell.task,
        )
        yield cell.prompt(
            index,
            text,
            (*start, *window),
            metric="nll",
            max_new_tokens=0,
            origin=file.origin,
            chat_template=False,
        )


def _leading_tokens(cell: Cell) -> tuple[int, ...]:
    """Special tokens that the tokenizer puts before every text, such as BOS."""
    with_special = cell.tokenizer("a")["input_ids"]
    plain = cell.tokenizer("a", add_special_tokens=False)["input_ids"]
    for count in range(len(with_special) - len(plain) + 1):
        if with_special[count : count + len(plain)] == plain:
            return tuple(with_special[:count])
    return ()
