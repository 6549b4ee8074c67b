"""How far a sweep is: a bar in terminals, lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from .. import progress
from ..progress import Running, in_words, seconds_left
from .table import Entry, Training


class Watch:
    """Who looks on, and says nothing."""

    def began(self, training: Training) -> None:
        del training

    def ended(self, training: Training, said: str) -> None:
        """Called when it is over, and when it is to be begun again."""
        del training, said

    def waiting(self) -> None:
        """Called about once a second."""


@contextmanager
def shown(
    entries: Sequence[Entry],
    total: int,
    slots: int,
    progress_bar: bool,
    console: Console | None = None,
) -> Iterator[Watch]:
    """Who looks on at trainings, `total` in all, those of `entries`, which grows, among them."""
    if not progress_bar:
        yield Watch()
        return
    console = console or Console()
    story = _Story(entries, total, slots)
    if not progress.draws(console):
        yield _Lines(story, console)
        return
    with progress.of_trainings(console) as bars:
        yield _Bar(story, bars, bars.add_task(story.counted(), total=total, left=""))


class _Story:
    """What has happened so far."""

    def __init__(self, entries: Sequence[Entry], total: int, slots: int):
        self._entries, self.total, self._slots = entries, total, slots
        self._began: dict[str, tuple[str, float]] = {}
        self._took: list[tuple[str, float]] = []

    def begin(self, training: Training) -> None:
        self._began[training.job.name] = (training.task, time.monotonic())

    def end(self, training: Training) -> None:
        kind, began = self._began.pop(training.job.name, (training.task, None))
        if training.status == "done" and began is not None:
            self._took.append((kind, time.monotonic() - began))

    def over(self) -> int:
        return sum(each.over for one in self._entries for each in one.trainings)

    def counted(self) -> str:
        return f"{self.over()} of {self.total} trainings"

    def running(self) -> str:
        return ", ".join(self._began)

    def left(self) -> str:
        now = time.monotonic()
        running = [Running(kind, now - began, 0.0) for kind, began in self._began.values()]
        kinds = [kind for kind, _ in self._took]
        to_come = max(0, self.total - self.over() - len(running))
        usual = max(set(kinds), key=kinds.count) if kinds else ""
        return in_words(seconds_left(to_come * [usual], running, self._took, self._slots))


class _Bar(Watch):
    def __init__(self, story: _Story, bars: Progress, whole: TaskID):
        self._story, self._bars, self._whole = story, bars, whole

    def began(self, training: Training) -> None:
        self._story.begin(training)

    def ended(self, training: Training, said: str) -> None:
        self._story.end(training)
        style = "red" if training.status == "failed" else ""
        self._bars.console.print(escape(said), style=style, highlight=False)
        self.waiting()

    def waiting(self) -> None:
        self._bars.update(
            self._whole,
            completed=self._story.over(),
            description=self._story.counted(),
            left=self._story.left(),
        )


class _Lines(Watch):
    """A line when a training ends, and one every half minute in between."""

    def __init__(self, story: _Story, console: Console):
        self._story, self._console = story, console
        self._printed = time.monotonic()

    def began(self, training: Training) -> None:
        self._story.begin(training)

    def ended(self, training: Training, said: str) -> None:
        self._story.end(training)
        self._print(said)

    def waiting(self) -> None:
        if time.monotonic() - self._printed >= progress.SECONDS_BETWEEN_LINES:
            self._print(f"running: {self._story.running()}")

    def _print(self, said: str) -> None:
        self._printed = time.monotonic()
        story = self._story
        progress.print_counted(self._console, story.over(), story.total, story.left(), said)
