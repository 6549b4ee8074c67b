"""How far a comparison is: bars in terminals, lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from .. import progress, runs
from ..processes import Child, Unwatched, Watch
from ..progress import Running, in_words, seconds_left

SECONDS_BETWEEN_LOOKS = 1.0
"""at what the trainings have written"""


@contextmanager
def shown(
    output: Path,
    budgets: dict[str, int],
    everything: Sequence[Child],
    children: Sequence[Child],
    side_by_side: int,
    progress_bar: bool,
    console: Console | None = None,
) -> Iterator[Watch]:
    """Who looks on at the trainings that are still to be done, `children` out of `everything`."""
    if not progress_bar or not children:
        yield Unwatched()
        return
    console = console or Console()
    story = _Story(output, budgets, len(everything), children, side_by_side)
    if not progress.draws(console):
        yield _Lines(story, console)
        return
    with progress.of_trainings(console) as bars:
        yield _Bars(story, bars)


class _Story:
    """What has happened so far."""

    def __init__(
        self,
        output: Path,
        budgets: dict[str, int],
        total: int,
        children: Sequence[Child],
        side_by_side: int,
    ):
        self._output, self._budgets, self._side_by_side = output, budgets, side_by_side
        self._to_come = [_agent(child.name) for child in children]
        self._began: dict[str, float] = {}
        self._took: list[tuple[str, float]] = []
        self._looked = 0.0
        self._shares: dict[str, float] = {}
        self.total = total
        self.done = total - len(children)

    def start(self, name: str) -> None:
        self._to_come.remove(_agent(name))
        self._began[name] = time.monotonic()
        self._shares[name] = 0.0

    def end(self, name: str, error: str | None) -> str:
        """Returns what is to be said about it."""
        seconds = time.monotonic() - self._began.pop(name)
        del self._shares[name]
        self.done += 1
        if error is not None:
            return f"{_shown(name)} failed: {error} (see {self._output / name}.log)"
        self._took.append((_agent(name), seconds))
        rows = runs.read_metrics(self._output / name)
        if not rows:
            return f"{_shown(name)} ended"
        value, steps = float(rows[-1]["eval_mean_return"]), int(rows[-1]["real_steps"])
        return (
            f"{_shown(name)}: mean return {value:,.1f} after {steps:,} real steps, {seconds:.0f} s"
        )

    def shares(self) -> dict[str, float]:
        """How far each of the trainings under way is, from 0 to 1."""
        now = time.monotonic()
        if now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            for name in self._shares:
                rows = runs.read_metrics(self._output / name)
                steps = int(rows[-1]["real_steps"]) if rows else 0
                self._shares[name] = min(1.0, steps / self._budgets[_agent(name)])
        return self._shares

    def left(self) -> str:
        now = time.monotonic()
        running = [
            Running(_agent(name), now - self._began[name], share)
            for name, share in self._shares.items()
        ]
        return in_words(seconds_left(self._to_come, running, self._took, self._side_by_side))


class _Bars:
    """A bar for the whole and one for each training under way."""

    def __init__(self, story: _Story, bars: Progress):
        self._story, self._bars = story, bars
        self._tasks: dict[str, TaskID] = {}
        self._whole = bars.add_task(self._counted(), total=story.total, left="")

    def started(self, name: str) -> None:
        self._story.start(name)
        self._tasks[name] = self._bars.add_task(_shown(name), total=1.0, left="")

    def ended(self, name: str, error: str | None) -> None:
        said = self._story.end(name, error)
        self._bars.remove_task(self._tasks.pop(name))
        self._bars.console.print(escape(said), style="red" if error else "", highlight=False)
        self._bars.update(self._whole, description=self._counted())

    def waiting(self) -> None:
        shares = self._story.shares()
        for name, share in shares.items():
            self._bars.update(self._tasks[name], completed=share)
        done = self._story.done + sum(shares.values())
        self._bars.update(self._whole, completed=done, left=self._story.left())

    def _counted(self) -> str:
        return f"{self._story.done} of {self._story.total} trainings"


class _Lines:
    """A line when a training ends, and one every half minute in between."""

    def __init__(self, story: _Story, console: Console):
        self._story, self._console = story, console
        self._printed = time.monotonic()

    def started(self, name: str) -> None:
        self._story.start(name)

    def ended(self, name: str, error: str | None) -> None:
        self._print(self._story.end(name, error))

    def waiting(self) -> None:
        if time.monotonic() - self._printed >= progress.SECONDS_BETWEEN_LINES:
            shares = self._story.shares().items()
            self._print(
                "running: " + ", ".join(f"{_shown(name)} {share:.0%}" for name, share in shares)
            )

    def _print(self, said: str) -> None:
        self._printed = time.monotonic()
        story = self._story
        progress.print_counted(self._console, story.done, story.total, story.left(), said)


def _agent(name: str) -> str:
    return name.partition("/")[0]


def _shown(name: str) -> str:
    return name.replace("/seed-", " seed ")
