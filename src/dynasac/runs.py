"""The run directory: plain files, each readable without this program."""

import contextlib
import csv
import dataclasses
import fcntl
import importlib.metadata
import io
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import checkpoint
from .errors import UsageError

METRICS = (
    "real_episodes",
    "real_steps",
    "logged_transitions",
    "failures",
    "synthetic_transitions",
    "gradient_updates",
    "train_return",
    "eval_mean_return",
    "eval_regret",
    "model_error",
    "adapt_rung",
    "error_exact",
    "error_identified",
    "error_residual",
    "error_ensemble",
    "real_fraction",
    "rollout_steps",
    "decision",
    "critic_loss",
    "actor_loss",
    "temperature",
    "entropy",
    "q_value",
    "collect_seconds",
    "adapt_seconds",
    "plan_seconds",
    "evaluate_seconds",
    "wall_seconds",
)
"""the columns of metrics.csv; docs/metrics.md says what each one means"""

PHASES = ("collect", "adapt", "plan", "evaluate")

_IMPORTING = threading.Lock()
"""held by the one thread that hides a module from another's import"""


class Stopwatch:
    """Seconds spent in each phase of training, of which there is one at a time."""

    def __init__(self, earlier: dict[str, float]):
        self.seconds = {phase: earlier.get(phase, 0.0) for phase in PHASES}
        self._phase: str | None = None
        self._since = 0.0

    def enter(self, phase: str | None) -> None:
        """From now on it is this phase, or none."""
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now


@contextlib.contextmanager
def locked(directory: Path, busy: str) -> Iterator[None]:
    """Keep other processes from writing to a directory, which is made if there is none.

    The kernel lets go however this process ends.

    Raises:
        UsageError: another process does, as `busy` says, or the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{directory} {busy}") from None
        except OSError:
            pass  # a file system without locks: better to work without than not at all
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def held(output: Path, kind: str) -> Iterator[None]:
    """No other process does the same in `output` meanwhile, a directory of many runs.

    Arguments:
        kind: what is done in it, in a word, as a comparison.

    Raises:
        UsageError: another one does, or `output` holds something else or cannot be written.
    """
    strange = output.exists() and not (output / "asked.json").exists()
    partial = checkpoint.PARTIAL  # of one that was killed as it began
    if strange and not (
        output.is_dir() and all(path.name.endswith(partial) for path in output.iterdir())
    ):
        raise UsageError(f"{output} already holds something: choose another --output")
    busy = f"is in use by another {kind}: wait for it, or choose another --output"
    with locked(output, busy):
        yield


BUSY = "is being written by another process: wait for it, or choose another --output"


def taken(directory: Path) -> UsageError:
    """That there is something where a new directory was to be."""
    return UsageError(
        f"{directory} already holds something: choose another --output, or go on with that run by "
        "--resume"
    )


def seed_directory(directory: Path, seed: int) -> Path:
    """The run directory of one of several seeds that are trained side by side."""
    return directory / f"seed-{seed}"


def seed_directories(directory: Path) -> list[Path]:
    """Those run directories that there are, by their numbers."""
    found = [path.parent for path in directory.glob("seed-*/config.json")]
    numbered = [path for path in found if path.name.removeprefix("seed-").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("seed-")))


class Run:
    """One directory that one training writes, and no other process meanwhile.

    config.json      what was asked for, versions included
    metrics.csv      a row for each count of real episodes, 0 included
    summary.json     what came out
    checkpoints/     all that is needed to go on
    policy/          all that is needed to act
    events.*         the metrics for TensorBoard
    """

    def __init__(self, directory: Path):
        """Take hold of a directory.

        Raises:
            UsageError: another process writes to it, or it cannot be written.
        """
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(directory, BUSY))
        self.directory = directory
        held = os.stat(directory)
        self._place = (held.st_dev, held.st_ino)
        self._new = False
        """whether it was made here"""
        self._started = time.perf_counter()
        self._earlier_seconds = 0.0
        self._rows: list[dict[str, Any]] = []
        self._lines: list[str] = []
        """the same as they are written: made anew for each row, a long run would get slower"""
        self._events = None
        self._learned = 0
        self.stopwatch = Stopwatch({})

    @classmethod
    def create(cls, directory: Path, config: dict[str, Any], keep: bool = False) -> "Run":
        """Claim a directory that holds nothing yet.

        Arguments:
            keep: even if training fails before there is anything in it to go on from.

        Raises:
            UsageError: there is something in it, or it cannot be written.
        """
        if directory.exists() and not directory.is_dir():
            raise taken(directory)
        run = cls(directory)
        run._new = not keep
        if any(directory.iterdir()):
            run.close()
            raise taken(directory)
        try:
            run.write_config({**config, "versions": versions()})
        except UsageError:
            run.close()
            raise
        return run

    def check_place(self) -> None:
        """Refuse to write where the directory was, once it has been moved or removed.

        Raises:
            UsageError: it has been.
        """
        try:
            there = os.stat(self.directory)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != self._place:
            raise UsageError(
                f"{self.directory} was moved or removed while it was written: nothing more is. Go "
                "on with it where it is now"
            )

    def write_config(self, config: dict[str, Any]) -> None:
        """Write down what was asked for."""
        try:
            checkpoint.write_json(self.directory / "config.json", config)
        except OSError as error:
            raise UsageError(f"cannot write to {self.directory}: {error.strerror}") from None

    def go_on(self, rows: int) -> None:
        """Append to the first `rows` rows of metrics.csv; later ones are of work that is lost.

        What a process that was killed left half-written goes too.
        """
        for path in self.directory.rglob(f".*{checkpoint.PARTIAL}"):
            with contextlib.suppress(OSError):
                path.unlink()
        self._rows = read_metrics(self.directory)[:rows]
        self._lines = [_line(row) for row in self._rows]
        for row in self._rows:
            for name in ("real_episodes", "real_steps"):
                measured(row, name)
        if self._rows:
            last = self._rows[-1]
            self._earlier_seconds = measured(last, "wall_seconds")
            self.stopwatch = Stopwatch({p: measured(last, f"{p}_seconds") for p in PHASES})

    @property
    def evaluated_at(self) -> int | None:
        """The real steps that lay behind at the last evaluation, if there was one."""
        evaluated = [row["real_steps"] for row in self._rows if row.get("eval_mean_return")]
        return int(evaluated[-1]) if evaluated else None

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, earlier parts of a resumed run included up to their last row."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.csv and to TensorBoard; None and NaN are left empty."""
        spent = {f"{phase}_seconds": s for phase, s in self.stopwatch.seconds.items()}
        seconds = {**spent, "wall_seconds": self.wall_seconds}
        filled = {**row, **{name: round(value, 3) for name, value in seconds.items()}}
        # a run that was killed before its checkpoint was written comes by here again
        count = int(row["real_episodes"])
        while self._rows and int(self._rows[-1]["real_episodes"]) >= count:
            del self._rows[-1], self._lines[-1]
        self._rows.append(filled)
        self._lines.append(_line(filled))
        _write_lines(self.directory, self._lines)
        step = int(row["real_steps"])
        for name, value in filled.items():
            if isinstance(value, int | float) and not _missing(value):
                self._show(f"dynasac/{name}", value, step)
        self._tensorboard.flush()

    def log_learning(self, learning: dict[str, float], updates: int) -> None:
        """Show TensorBoard how the last updates went, once for each count of them."""
        if updates > self._learned:
            self._learned = updates
            for name, value in learning.items():
                self._show(f"learning/{name}", value, updates)
            self._tensorboard.flush()

    def write_summary(self, summary: dict[str, Any]) -> None:
        checkpoint.write_json(self.directory / "summary.json", summary)

    def discard_if_empty(self) -> None:
        """Remove a run that failed before there was anything in it to go on from."""
        found = list(self.directory.iterdir()) if self.directory.is_dir() else []
        ours = [p for p in found if p.name == "config.json" or p.name.startswith("events.")]
        if self._new and len(ours) == len(found):
            for path in ours:
                path.unlink()
            self.directory.rmdir()

    def close(self) -> None:
        """Let go of the directory."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # all that matters of it was flushed
                self._events.close()
        self._held.close()

    def _show(self, name: str, value: float | int, step: int) -> None:
        writer = self._tensorboard  # which sees to how tensorboardX is imported
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        event = Event(summary=scalar(name, value), step=step, wall_time=time.time())
        writer.write(event.SerializeToString())

    @property
    def _tensorboard(self):
        """A writer of records. tensorboardX's own SummaryWriter has a thread for it; once the disk
        is full that ends, and whoever has more to write waits for ever."""
        if self._events is None:
            with _IMPORTING:
                # tensorboardX imports torch where there is one, which can take longer than training
                hidden = "torch" not in sys.modules
                if hidden:
                    sys.modules["torch"] = None  # type: ignore[assignment]
                try:
                    from tensorboardX import RecordWriter
                    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
                finally:
                    if hidden:
                        del sys.modules["torch"]

            now, earlier = time.time(), len(list(self.directory.glob("events.*")))
            name = f"events.out.tfevents.{now:.0f}.{platform.node()}.{earlier}"
            self._events = RecordWriter(str(self.directory / name))
            begins = Event(wall_time=now, file_version="brain.Event:2")
            self._events.write(begins.SerializeToString())
        return self._events


def write_metrics(directory: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace metrics.csv; what is missing, None or NaN is left empty."""
    _write_lines(directory, [_line(row) for row in rows])


def _write_lines(directory: Path, lines: Sequence[str]) -> None:
    header = ",".join(METRICS) + "\n"
    checkpoint.write_bytes(directory / "metrics.csv", "".join([header, *lines]).encode())


def _line(row: dict[str, Any]) -> str:
    text = io.StringIO()
    cells = ["" if _missing(row.get(name)) else row[name] for name in METRICS]
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


LONGEST_METRICS, MOST_COLUMNS = 100_000_000, 100
"""bytes and columns that metrics.csv may have"""


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv, as text; none if there is none.

    Raises:
        UsageError: it cannot be read, or is no table.
    """
    path = directory / "metrics.csv"
    try:
        with checkpoint.regular(path) as file:
            content = file.read(LONGEST_METRICS + 1)
        if len(content) > LONGEST_METRICS:
            raise ValueError(f"it has more than {LONGEST_METRICS:,} bytes")
        header, *rows = csv.reader(io.StringIO(content.decode(), newline="")) if content else [[]]
        # short rows under a long header would take the memory of long ones
        if len(header) > MOST_COLUMNS or any(len(row) not in (0, len(header)) for row in rows):
            raise ValueError("it is no table with the same columns in each row")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    return [dict(zip(header, row, strict=True)) for row in rows if row]


def measured(row: dict[str, Any], name: str) -> float:
    """A number from a row of `read_metrics`.

    Raises:
        UsageError: there is none that could have been measured.
    """
    try:
        number = float(row[name])
    except (KeyError, ValueError):
        number = math.nan
    if not abs(number) < 1e15:
        raise UsageError(f"metrics.csv is damaged: {name} is {row.get(name)!r}")
    return number


def versions() -> dict[str, str]:
    """What this was run with."""
    packages = ("dynasac", "jax", "equinox", "optax", "gymnasium", "numpy")
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **found}


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON holds it."""
    return dataclasses.asdict(config)


def listed(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        nested = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        found.update({f"{prefix}{name}": value} if nested is None else nested)
    return found


_compiled = threading.local()
"""seconds of each thread, as `seconds`"""


def _heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event.startswith("/jax/core/compile/"):
        _compiled.seconds = getattr(_compiled, "seconds", 0.0) + duration_secs


# once in a process: what is registered stays
jax.monitoring.register_event_duration_secs_listener(_heard)


class CompileClock:
    """Seconds that JAX spent on tracing and compiling, in this thread, since this was made.

    Of learners side by side, what all of them use is counted for the one that came first.
    """

    def __init__(self):
        self._before = getattr(_compiled, "seconds", 0.0)

    @property
    def seconds(self) -> float:
        return getattr(_compiled, "seconds", 0.0) - self._before


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))
