"""The one output sink: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from .progress import Progress, ProgressMode, choose_mode, show_progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .errors import Failure

# Every process of a group is stopped alike. Other errors are told by whoever meets them, since the
# launcher ends the rest, the first process perhaps before it can speak.
_SAID_BY_THE_FIRST = ("INTERRUPTED", "TERMINATED")


class Output:
    """Writes what a command says.

    Standard output carries the result only: tables and lines, or with `json_mode` exactly one
    document with a `schema` key. Talk, progress, warnings and errors go to standard error;
    `verbosity` -1 silences talk and progress, 1 adds detail. A process of a group other than its
    first one, `rank` 0, tells only what went wrong.
    """

    def __init__(
        self,
        *,
        json_mode: bool,
        verbosity: int = 0,
        rank: int = 0,
        progress_mode: ProgressMode = "auto",
    ) -> None:
        self.json_mode = json_mode
        self.verbosity = verbosity
        self.rank = rank
        self.progress_mode = progress_mode

    # -- results --------------------------------------------------------------------------------
    def line(self, text: str = "") -> None:
        """One line of the result; nothing with --json."""
        if not self.json_mode and self.rank == 0:
            sys.stdout.write(text + "\n")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[RenderableType]],
        *,
        left: Sequence[int] = (0,),
    ) -> None:
        """A table of the result; the columns numbered in `left` are text, the others figures."""
        if self.json_mode or self.rank != 0:
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for number, name in enumerate(columns):
            is_text = number in left
            justify: Literal["left", "right"] = "left" if is_text else "right"
            overflow: Literal["fold", "ellipsis"] = "fold"
            table.add_column(name, justify=justify, overflow=overflow)
        for row in rows:
            table.add_row(*row)
        self.draw(table)

    def draw(self, drawing: RenderableType) -> None:
        """A part of the result that rich lays out for the terminal; nothing with --json."""
        if not self.json_mode and self.rank == 0:
            console(sys.stdout).print(drawing)

    def document(self, document: dict[str, Any]) -> None:
        """The one JSON document of a command; nothing without --json."""
        if self.json_mode and self.rank == 0:
            assert "schema" in document
            json.dump(document, sys.stdout, allow_nan=False, ensure_ascii=True, indent=2)
            sys.stdout.write("\n")

    # -- talk -----------------------------------------------------------------------------------
    def info(self, text: str) -> None:
        """A line of talk."""
        if self.verbosity >= 0 and self.rank == 0:
            self._talk(text)

    def detail(self, text: str) -> None:
        """A line of talk that -v asks for."""
        if self.verbosity >= 1 and self.rank == 0:
            self._talk(text)

    def warn(self, text: str) -> None:
        """A warning; always shown."""
        if self.rank == 0:
            self._talk(f"warning: {text}")

    def failure(self, failure: Failure) -> None:
        """The error that ends a command, or one of several with --keep-going."""
        if self.rank != 0:
            if failure.code not in _SAID_BY_THE_FIRST:
                self._talk(f"rank {self.rank}: error: {failure.message}")
            return
        self._talk(f"error: {failure.message}")
        if failure.hint is not None:
            self._talk(f"hint: {failure.hint}")

    def error_document(self, failure: Failure) -> None:
        """The one JSON document of a command that failed."""
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        self.document({"schema": "sp.error", "error": error})

    @staticmethod
    def _talk(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    # -- progress -------------------------------------------------------------------------------
    @contextmanager
    def progress(self, what: str, unit: str) -> Iterator[Progress]:
        """Yields a function that takes the number of units done and their number in all.

        `--progress` says how it is told; by itself a bar on a terminal, elsewhere one line a
        minute, and nothing with --json or -q.
        """
        silent = self.json_mode or self.verbosity < 0
        mode = "none" if self.rank != 0 else choose_mode(self.progress_mode, silent=silent)
        with show_progress(what, unit, mode) as update:
            yield update


def console(stream: Any) -> Console:
    """rich's way to `stream`."""
    from rich.console import Console

    # Without a terminal rich already drops colour and takes 80 columns; NO_COLOR is its own.
    return Console(file=stream, highlight=False, markup=False, emoji=False)
