"""The progress of training: a bar in terminals and notebooks, a line now and then elsewhere."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from . import training
from .training import Counts, Observer, Phase, Task, TrainingState

SECONDS_BETWEEN_LINES = 30.0
"""where there is no bar, as in log files"""


@contextmanager
def shown(
    task: Task,
    counts: Counts,
    observer: Observer,
    real_episodes: int | None,
    total_timesteps: int | None = None,
    console: Console | None = None,
) -> Iterator[Observer]:
    """An observer that shows how far training is and hands everything on to `observer`."""
    if real_episodes is None:
        real_episodes = -(-(total_timesteps or 0) // task.spaces.episode_steps)
    console = console or Console()
    if not draws(console):
        yield _Lines(observer, real_episodes, console)
        return
    with _bars(console) as progress:
        yield _Bar(task, counts, observer, real_episodes, progress)


Tell = Callable[[int, int, int], None]
"""To be called now and then, with the updates that are done, those to come, and how many learners
are through."""


@contextmanager
def counted(learners: int, console: Console | None = None) -> Iterator[Tell]:
    """Shows how far several learners are in all, as `shown` does it for one."""
    console = console or Console()
    if not draws(console):
        yield _lines_of(learners, console)
        return
    with _bars(console) as progress:
        bar = progress.add_task("compiling", total=None)

        def tell(done: int, to_come: int, through: int) -> None:
            said = f"{through} of {learners} learners are through" if done else "compiling"
            progress.update(bar, completed=done, total=done + to_come, description=said)

        yield tell


def _lines_of(learners: int, console: Console) -> Tell:
    """Prints a line for every half minute, with the time left by the speed since the first call."""
    started = printed = time.monotonic()
    before: int | None = None

    def tell(done: int, to_come: int, through: int) -> None:
        nonlocal printed, before
        now, before = time.monotonic(), done if before is None else before
        if now - printed < SECONDS_BETWEEN_LINES:
            return
        printed, seconds, made = now, now - started, done - before
        left = f", about {seconds * to_come / made:.0f} s left" if made else ""
        console.print(
            f"{through} of {learners} learners are through ({done:,} of {done + to_come:,} "
            f"updates, {seconds:.0f} s{left})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    return tell


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        _Speed(),
        console=console,
    )


def draws(console: Console) -> bool:
    """Whether lines can be written over: in a terminal, or a notebook with widgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def doing(state: TrainingState, phase: Phase) -> str:
    """A phase in words."""
    if phase == "collect":
        return f"real episode {state.counts.real_episodes + 1}"
    if phase == "plan" and not state.counts.gradient_updates:
        return "compiling"
    return f"{'planning' if phase == 'plan' else 'trying the model'} {_after(state.counts)}"


def _after(counts: Counts) -> str:
    """What experience there is."""
    episodes, logged = counts.real_episodes, counts.logged_transitions
    lived = f"{episodes} real episode{'' if episodes == 1 else 's'}"
    if not logged:
        return f"after {lived}"
    return f"after {logged:,} logged transitions{f' and {lived}' if episodes else ''}"


def of_trainings(console: Console) -> Progress:
    """Bars of many trainings; `left` of each is what is told of the time to come."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[left]}"),
        console=console,
    )


def print_counted(console: Console, over: int, total: int, left: str, said: str) -> None:
    """A line about many trainings, with how many are over and the time that is left."""
    line = f"[{over} of {total}{', ' if left else ''}{left}] {said}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Speed(ProgressColumn):
    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} updates/s", style="cyan")


class _Bar:
    """Draws one bar over all updates to come."""

    def __init__(
        self,
        task: Task,
        counts: Counts,
        observer: Observer,
        real_episodes: int,
        progress: Progress,
    ):
        self._task, self._observer, self._real_episodes = task, observer, real_episodes
        self._progress = progress
        to_come = training.updates_to_come(task, counts, real_episodes)
        done = counts.gradient_updates
        self._bar = progress.add_task("compiling", completed=done, total=done + to_come)
        self._drawn = 0.0

    def progress(self, state: TrainingState, phase: Phase) -> None:
        if time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            done = state.counts.gradient_updates
            self._progress.update(self._bar, completed=done, description=doing(state, phase))
        self._observer.progress(state, phase)

    def episode(self, state: TrainingState) -> bool | None:
        counts = state.counts
        if training.decision(state):
            self._progress.console.print(_decision(state), highlight=False, markup=False)
        to_come = training.updates_to_come(self._task, counts, self._real_episodes)
        self._progress.update(
            self._bar,
            completed=counts.gradient_updates,
            total=counts.gradient_updates + to_come,
            description=f"evaluating {_after(counts)}",
            refresh=True,
        )
        return self._observer.episode(state)


class _Lines:
    """Prints a line for each real episode, and one for every half minute in between."""

    def __init__(self, observer: Observer, real_episodes: int, console: Console):
        self._observer, self._real_episodes, self._console = observer, real_episodes, console
        self._started = self._printed = time.monotonic()

    def progress(self, state: TrainingState, phase: Phase) -> None:
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            self._print(f"{doing(state, phase)}{self._far(state)}")
        self._observer.progress(state, phase)

    def episode(self, state: TrainingState) -> bool | None:
        if state.counts.real_episodes or training.decision(state):
            self._printed = time.monotonic()
            self._print(_decision(state) + self._far(state))
        return self._observer.episode(state)

    def _far(self, state: TrainingState) -> str:
        counts, seconds = state.counts, time.monotonic() - self._started
        return (
            f" ({counts.real_episodes} of {self._real_episodes} real episodes, "
            f"{counts.gradient_updates:,} updates, {seconds:.0f} s)"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _decision(state: TrainingState) -> str:
    """What came of the last real episode, or of logged data."""
    lived = f"its return was {state.train_return:.1f}" if state.counts.real_episodes else ""
    said = state.adaptation.sentence or lived, training.setback(state.counts)
    return f"{_after(state.counts)}: {'; '.join(filter(None, said))}"


class Running(NamedTuple):
    """A training under way."""

    kind: str
    """those of a kind take about as long"""
    seconds: float
    share: float
    """of it that lies behind"""


def seconds_left(
    to_come: Sequence[str],
    running: Sequence[Running],
    took: Sequence[tuple[str, float]],
    side_by_side: int,
) -> float | None:
    """Seconds until all trainings have ended; None as long as nothing is known.

    A kind's training takes what those of it took that have ended; if there are none, what those
    under way will at their speed; if it has not begun, what those of other kinds do on average.

    Arguments:
        to_come: the kind of each training that has not begun.
        took: kind and seconds of those that have ended.
    """
    samples: dict[str, list[float]] = {}
    for kind, seconds in took:
        samples.setdefault(kind, []).append(seconds)
    ended = set(samples)
    for each in running:
        if each.kind not in ended and each.share > 0:
            samples.setdefault(each.kind, []).append(each.seconds / each.share)
    if not samples:
        return None
    expected = {kind: sum(found) / len(found) for kind, found in samples.items()}
    other = sum(expected.values()) / len(expected)
    remaining = [max(0.0, expected.get(each.kind, other) - each.seconds) for each in running]
    work = sum(remaining) + sum(expected.get(kind, other) for kind in to_come)
    return max(work / side_by_side, max(remaining, default=0.0))


def in_words(seconds: float | None) -> str:
    """As people say it: no more exact than it is."""
    if not seconds:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
