"""What the shell is offered for names: models, profiles, methods, tasks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_HUB_PREFIX = "models--"


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Aliases and the hub models in the cache; files and folders where none of them fits."""
    from sp_profile.model_source import ALIASES

    return _items((*ALIASES, *_cached_models()), incomplete) or [_files(incomplete)]


def complete_profile(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Folders that hold a profile, here or in profiles/; any folder where there is none."""
    start = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    folders = [start] if incomplete else [start, Path("profiles")]
    found = [
        str(file.parent) for folder in folders for file in sorted(folder.glob("*/profile.json"))
    ]
    return _items(found, incomplete) or [CompletionItem(incomplete, type="dir")]


def complete_method(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of methods, after the last comma."""
    from sp_runtime.method_spec import PLAN_ALIAS
    from sp_runtime.operating_point import METHODS

    return _after_comma((PLAN_ALIAS, *METHODS), incomplete)


def complete_task(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of calibration tasks, after the last comma."""
    from sp_profile.tasks.calibration import TASKS

    return _after_comma(TASKS, incomplete)


def complete_eval_task(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of evaluation tasks and their groups, after the last comma."""
    from sp_profile.tasks.registry import eval_task_groups, eval_task_names

    return _after_comma((*eval_task_groups(), *eval_task_names()), incomplete)


def _after_comma(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + name) for name in names if name.startswith(last)]


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _files(incomplete: str) -> CompletionItem:
    return CompletionItem(incomplete, type="file")


def _cached_models() -> list[str]:
    """Hub ids in the cache, by the names of its folders."""
    home = os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub")))
    return sorted(
        folder.name.removeprefix(_HUB_PREFIX).replace("--", "/", 1)
        for folder in cache.glob(f"{_HUB_PREFIX}*--*")
    )
