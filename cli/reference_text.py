"""What the pages of the reference say beside the commands."""

# ruff: noqa: E501 - rows of Markdown tables cannot be broken

from __future__ import annotations

INDEX = """\
# Reference

Made from the commands themselves by `make reference`. Every command answers `--help` with the same
text, and `--version` names the git revision. Beside the two programs:
[configuration files and environment variables](configuration.md),
[exit codes and errors](exit-codes.md), [progress](progress.md).
"""

CONFIGURATION = """\
# Configuration

Commands with more than a few options take `--config FILE.toml`. A flag goes over the environment,
the environment over the file, the file over the default. `--show-config` prints what comes of it,
with the source of every value, as a file that `--config` takes again; with `--json` as a document
`sp.config`.

```toml
model = "smollm2-135m"      # for every command of this file that has the option

[calibrate]                 # for sp-profile calibrate
length = [1024, 2048]
block-size = 64

[bench.kernel]              # for sp-run bench kernel
density = [0.25, 0.05]
```

Keys are the long options without their dashes. A repeatable option takes one value or a list, a
switch `true` or `false`. Unknown keys, tables that are no command and values of another type are
errors (exit code 2) that name the nearest known one. Arguments, `--json`, `-v`, `-q` and `--progress`
are no settings of what a command does, so a file cannot hold them. Paths are relative to the
current folder, as on the command line. Files are at most 1 MiB of UTF-8.

What a command computed with is kept in what it writes:

| command | where |
| --- | --- |
| `sp-profile calibrate` | `run.json` in the run folder |
| `sp-profile cluster`, `search`, `import` | `config.toml` in the profile's folder, beside what `profile.json` says; names of models and paths are left out |
| `sp-run eval` | `run.json` in its folder, and `summary.json` |
| `sp-run prefill -o` | `point` and `config` in every row |
| `sp-run bench -o` | `command` and `settings` in the document |

## Environment variables

| variable | effect |
| --- | --- |
| `SP_<PROGRAM>_<COMMAND>_<OPTION>` | an option, as in the tables below; options that can be repeated take several values with blanks between, paths with `:` between |
| `SP_PROGRESS` | `--progress` of every command |
| `SP_DEBUG=1` | print the traceback of an error |
| `NO_COLOR` | no colour |
| `COLUMNS` | width of tables where standard output is no terminal (80) |
| `HF_HUB_OFFLINE=1` | never ask the hub for a model |
| `HF_TOKEN` | the hub's token, for `sp-profile push` and private repositories |
| `HF_HOME`, `HF_HUB_CACHE` | where models of the hub are kept |
| `OMP_NUM_THREADS` | CPU threads |
| `CUDA_VISIBLE_DEVICES` | the GPUs that there are |

A variable that begins like those of the command that runs and names none of its options is an
error.

## Keys and variables
"""

EXIT_CODES = """\
# Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed; with `--keep-going` also: some prompts failed |
| 2 | usage: an option, a path or an input file that cannot be used, or something unsupported |
| 3 | the profile was made for another model |
| 4 | a corrupt profile, run folder or model file |
| 5 | findings of a comparison |
| 6 | resources: memory or disk |
| 7 | another process holds the folder |
| 130 | interrupted; `calibrate`, `eval` and `prefill -o` resume with the same command |
| 141 | the reader of standard output went away |
| 143 | terminated |

An error is one line on standard error, `error: ...`, with what to try next below it, `hint: ...`.
With `--json` standard output holds one document
`{"schema": "sp.error", "error": {"code", "message", "hint"}}`, whose `code` is stable:

| code | exit code |
| --- | --- |
| `USAGE`, `UNSUPPORTED` | 2 |
| `PROFILE_MISMATCH` | 3 |
| `CORRUPT_ARTEFACT` | 4 |
| `RESOURCES` | 6 |
| `FOLDER_LOCKED` | 7 |
| `FAILURE`, `DEVICE`, `INTERNAL` | 1 |
| `INTERRUPTED` | 130 |
| `TERMINATED` | 143 |

`SP_DEBUG=1` prints the traceback of an error as well. Nothing half-written stays behind.
"""

PROGRESS = """\
# Progress

Commands that may take long tell on standard error how far they are: `--progress`, or the variable
`SP_PROGRESS`, says how.

| value | what is told |
| --- | --- |
| `auto` | `bar` on a terminal, else `plain`; nothing with `--json` or `-q` |
| `bar` | units, rate, time left, memory now and at most |
| `plain` | the same as one line a minute, for `nohup` and CI |
| `json` | one JSON object a line (schema `sp.progress`): at once for the first and last, in between at most one a second and at least one a minute |
| `none` | nothing |

Memory is what torch holds on the current GPU, or the process's resident memory on a CPU.

## Lines of `--progress json`
"""
