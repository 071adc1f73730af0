"""Built-in calibration tasks, and the evaluation tasks that share no prompt with them."""

from sp_profile.tasks.calibration import SPLITS, TASKS, Split, Task, make_prompt
from sp_profile.tasks.eval_prompt import EvalPrompt, TaskData
from sp_profile.tasks.registry import (
    eval_task_groups,
    eval_task_names,
    make_prompts,
    resolve_tasks,
)

__all__ = [
    "SPLITS",
    "TASKS",
    "EvalPrompt",
    "Split",
    "Task",
    "TaskData",
    "eval_task_groups",
    "eval_task_names",
    "make_prompt",
    "make_prompts",
    "resolve_tasks",
]
