"""How long work is told: a bar on a terminal, a line a minute in a log, JSON lines for a program.

All of it goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

ProgressMode = Literal["auto", "bar", "plain", "json", "none"]
MODES: tuple[ProgressMode, ...] = ("auto", "bar", "plain", "json", "none")
SCHEMA = "sp.progress"
LINE_EVERY_SECONDS = 60.0
_JSON_EVERY_SECONDS = 1.0


class Progress(Protocol):
    """What a command calls with the units done and their number in all."""

    def __call__(self, done: int, total: int, phase: str = "") -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Of the process: bytes now, and the most so far. device: `cuda:0`, or `cpu` (resident)."""

    device: str
    now_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressLine:
    """One line of `--progress json`.

    event: begin, update, end, or stop where an error ended the work. phase: what is counted now;
    counts and rate begin anew with each. rate: units a second of this process, None before the
    first unit. seconds: since begin. seconds_left: of this phase, None while unknown.
    """

    schema: str = SCHEMA
    event: Literal["begin", "update", "end", "stop"]
    task: str
    phase: str
    unit: str
    done: int
    total: int | None
    rate: float | None
    seconds: float
    seconds_left: float | None
    memory: Memory


Clock = Callable[[], float]


class Meter:
    """Counts, rate and time left of one piece of work. What was done before it counts nowhere."""

    def __init__(self, task: str, unit: str, clock: Clock = time.monotonic) -> None:
        self.task, self.unit = task, unit
        self._clock = clock
        self._start = self._phase_start = clock()
        self._first = self.done = 0
        self.total: int | None = None
        self.phase = ""
        self._peak: dict[str, int] = {}

    def update(self, done: int, total: int, phase: str = "") -> None:
        """Take what the command tells; the first call of a phase says what was done before."""
        if self.total is None or phase != self.phase:
            self._first, self._phase_start = done, self._clock()
        self.done, self.total, self.phase = done, total, phase

    def line(self, event: Literal["begin", "update", "end", "stop"]) -> ProgressLine:
        """How things stand."""
        now = self._clock()
        new, spent = self.done - self._first, now - self._phase_start
        rate = new / spent if new > 0 and spent > 0 else None
        left = None
        if rate is not None and self.total is not None:
            left = round((self.total - self.done) / rate, 1)
        return ProgressLine(
            event=event,
            task=self.task,
            phase=self.phase,
            unit=self.unit,
            done=self.done,
            total=self.total,
            rate=None if rate is None else round(rate, 6),
            seconds=round(now - self._start, 3),
            seconds_left=left,
            memory=self._memory(),
        )

    def _memory(self) -> Memory:
        # A measurement may reset torch's peak; the most that was seen here stays.
        device, now, peak = process_memory()
        self._peak[device] = max(peak, now, self._peak.get(device, 0))
        return Memory(device=device, now_bytes=now, peak_bytes=self._peak[device])


def process_memory() -> tuple[str, int, int]:
    """(device, bytes now, peak bytes): torch's of the current GPU, else resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        number = torch.cuda.current_device()
        peak = torch.cuda.max_memory_allocated(number)
        return f"cuda:{number}", torch.cuda.memory_allocated(number), peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:  # no Linux: what is used now is not told without other packages
        now = peak
    return "cpu", now, peak


def choose_mode(asked: ProgressMode, *, silent: bool) -> ProgressMode:
    """What `auto` stands for: nothing where the command is to be silent, else by the terminal."""
    if asked != "auto":
        return asked
    if silent:
        return "none"
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return "bar" if is_terminal else "plain"


@contextmanager
def show_progress(
    task: str, unit: str, mode: ProgressMode, *, clock: Clock = time.monotonic
) -> Iterator[Progress]:
    """Yields the function that a command calls as it goes; mode is not `auto`."""
    meter = Meter(task, unit, clock)
    if mode == "none":
        yield meter.update
    elif mode == "bar":
        with _bar(meter) as update:
            yield update
    else:
        lines = (_JsonLines if mode == "json" else _PlainLines)(meter, clock)
        with lines.told():
            yield lines.update


class _Lines:
    """Lines at most every so often, and one a minute where nothing else is heard."""

    every_seconds = LINE_EVERY_SECONDS

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self.meter = meter
        self._clock = clock
        self._last = clock()
        self._lock = threading.Lock()

    def write(self, line: ProgressLine) -> None:
        raise NotImplementedError

    def update(self, done: int, total: int, phase: str = "") -> None:
        with self._lock:
            is_new = self.meter.total is None or phase != self.meter.phase
            self.meter.update(done, total, phase)
            if is_new:
                self.begin_phase()
            elif self._clock() - self._last >= self.every_seconds:
                self._tell("update")

    def begin_phase(self) -> None:
        """The first counts of a phase are known."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """Runs the minute's clock beside the work."""
        over = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(over,), daemon=True)
        ticker.start()
        self.begin()
        event: Literal["end", "stop"] = "stop"
        try:
            yield
            event = "end"
        finally:
            over.set()
            ticker.join()
            self.end(event)

    def begin(self) -> None:
        """The work begins."""

    def end(self, event: Literal["end", "stop"]) -> None:
        """The work is over."""

    def _tick(self, over: threading.Event) -> None:
        while not over.wait(1.0):
            with self._lock:
                if self._clock() - self._last >= LINE_EVERY_SECONDS:
                    self._tell("update")

    def _tell(self, event: Literal["begin", "update", "end", "stop"]) -> None:
        self._last = self._clock()
        self.write(self.meter.line(event))


class _PlainLines(_Lines):
    def write(self, line: ProgressLine) -> None:
        _say(plain_text(line))

    def end(self, event: Literal["end", "stop"]) -> None:
        line = self.meter.line(event)
        if event == "end" and line.seconds >= LINE_EVERY_SECONDS:
            self.write(line)


class _JsonLines(_Lines):
    every_seconds = _JSON_EVERY_SECONDS

    def write(self, line: ProgressLine) -> None:
        _say(json.dumps(dataclasses.asdict(line), allow_nan=False))

    def begin(self) -> None:
        self._tell("begin")

    def begin_phase(self) -> None:
        self._tell("update")

    def end(self, event: Literal["end", "stop"]) -> None:
        self._tell(event)


def plain_text(line: ProgressLine) -> str:
    """`calibrate: 3/8 prompts, 0.52 prompts/s, 10 s left, 2.1 GiB on cpu (peak 3.4)`."""
    parts = [f"{line.done}/{'?' if line.total is None else line.total} {line.phase or line.unit}"]
    if line.rate is not None:
        parts.append(rate_text(line.rate, line.phase or line.unit))
    if line.event == "end":
        parts.append(f"{duration_text(line.seconds)} in all")
    elif line.seconds_left is not None:
        parts.append(f"{duration_text(line.seconds_left)} left")
    return f"{line.task}: {', '.join([*parts, memory_text(line.memory)])}"


def rate_text(rate: float, unit: str) -> str:
    """Units a second, or seconds a unit where those are more than one."""
    return f"{rate:.2f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours, to what one can still tell."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory_text(memory: Memory) -> str:
    """Bytes as GiB."""
    now, peak = (size / 2**30 for size in (memory.now_bytes, memory.peak_bytes))
    return f"{now:.2f} GiB on {memory.device} (peak {peak:.2f})"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def _bar(meter: Meter) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from .output import console

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[memory]}"),
    )
    bars = Bars(
        *columns,
        console=console(sys.stderr),
        transient=True,
        refresh_per_second=2,  # measurements run beside it
        redirect_stdout=sys.stdout.isatty(),  # a result that goes to a file is not the bar's
    )
    with bars:
        task = bars.add_task(meter.task, total=None, rate="", left="", memory="")

        def update(done: int, total: int, phase: str = "") -> None:
            begins = phase != meter.phase
            meter.update(done, total, phase)
            if begins:
                bars.reset(task, description=f"{meter.task} {phase}".strip())
            line = meter.line("update")
            rate = "" if line.rate is None else rate_text(line.rate, phase or meter.unit)
            now, peak = (size / 2**30 for size in (line.memory.now_bytes, line.memory.peak_bytes))
            memory = f"{now:.1f} GiB (peak {peak:.1f})"
            left = "" if line.seconds_left is None else f"{duration_text(line.seconds_left)} left"
            bars.update(task, completed=done, total=total, rate=rate, left=left, memory=memory)

        yield update
