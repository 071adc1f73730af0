"""Write held-out prompts of the built-in tasks to a JSON lines file, for long-prompt runs.

    python benchmarks/make_prompts.py MODEL OUT.jsonl --length 16384 --length 32000

They share no seed and no key with calibration prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sp_profile.models import load_tokenizer, resolve_model
from sp_profile.tasks import TASKS, make_prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--length", type=int, action="append", required=True)
    parser.add_argument("--task", action="append", choices=TASKS)
    parser.add_argument("--samples", type=int, default=1)
    args = parser.parse_args()
    tokenizer = load_tokenizer(resolve_model(args.model))
    lines = [
        json.dumps(
            {
                "id": prompt.name,
                "task": prompt.task,
                "prompt": prompt.text,
                "answer_prefix": prompt.answer_prefix,
                "answers": prompt.answers,
            }
        )
        for length in args.length
        for task in args.task or TASKS
        for index in range(args.samples)
        for prompt in [
            make_prompt(task, length, tokenizer, chat_template=True, index=index, split="heldout")
        ]
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
