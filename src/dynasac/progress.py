"""A progress bar with time left and speed, for terminals, notebooks and logs."""

import time

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from . import training
from .training import Observer, Task, TrainingState


class _Speed(ProgressColumn):
    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} updates/s", style="cyan")


class Bar:
    """An observer that draws the progress of training and hands everything on."""

    def __init__(
        self,
        task: Task,
        observer: Observer,
        real_episodes: int | None,
        total_timesteps: int | None = None,
    ):
        if real_episodes is None:
            real_episodes = -(-(total_timesteps or 0) // task.spaces.episode_steps)
        self._task, self._observer, self._real_episodes = task, observer, real_episodes
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            _Speed(),
        )
        self._bar = None
        self._drawn = 0.0

    def __enter__(self) -> "Bar":
        self._progress.start()
        self._bar = self._progress.add_task("compiling", total=self._left(training.Counts()))
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def progress(self, state: TrainingState, message: str) -> None:
        if time.monotonic() - self._drawn > 0.1 and self._bar is not None:
            self._drawn = time.monotonic()
            self._progress.update(
                self._bar, completed=state.counts.gradient_updates, description=message or None
            )
        self._observer.progress(state, message)

    def episode(self, state: TrainingState) -> None:
        if state.adaptation.sentence and state.counts.real_episodes:
            self._progress.console.print(
                f"after {state.counts.real_episodes} real episodes: {state.adaptation.sentence}",
                highlight=False,
            )
        if self._bar is not None:
            self._progress.update(
                self._bar,
                completed=state.counts.gradient_updates,
                total=state.counts.gradient_updates + self._left(state.counts),
                description=f"evaluating after {state.counts.real_episodes} real episodes",
                refresh=True,
            )
        self._observer.episode(state)

    def _left(self, counts: training.Counts) -> int:
        return training.updates_to_come(self._task, counts, self._real_episodes)
