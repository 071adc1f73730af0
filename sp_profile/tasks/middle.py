"""Long prompts cut in the middle to a number of tokens, as InfiniteBench cuts them."""

from __future__ import annotations

from collections.abc import Callable

from sp_profile.prompts import PromptText

# More characters than any usual tokenizer has in a token, on average over half a prompt.
_CHARACTERS_A_TOKEN = 16


def cut_middle(
    context: str,
    whole: Callable[[str], PromptText],
    encode: Callable[[PromptText], tuple[int, ...]],
    length: int,
) -> tuple[PromptText, tuple[int, ...]]:
    """The prompt and its tokens; of more than `length` tokens the middle ones are left out.

    whole: the prompt of a context. Of a very long context only the two ends are tokenized.
    """
    side = length * _CHARACTERS_A_TOKEN
    text = whole(context)
    if len(context) > 4 * side:
        ends = encode(whole(context[:side] + context[-side:]))
        if len(ends) >= 2 * length:
            return text, _without_middle(ends, length)
    ids = encode(text)
    return text, ids if len(ids) <= length else _without_middle(ids, length)


def _without_middle(ids: tuple[int, ...], length: int) -> tuple[int, ...]:
    head = length // 2
    return ids[:head] + ids[len(ids) - (length - head) :]
