"""Settings × seeds: many trainings, on this machine or a cluster, each a run directory.

    from dynasac.sweep import LocalPool, Sweep, sweep

    sweep(Sweep(("Pendulum-v1",), grid={"sac.learning_rate": (1e-3, 3e-3)}), Path("out"), LocalPool)

A trial is one setting with every task and seed; OUTPUT/trial-0007/seed-100 is a training of one
task, OUTPUT/trial-0007/TASK/seed-100 of several.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import checkpoint, presets, runs
from ..errors import UsageError
from ..runs import held
from . import display, scores, table
from .pool import Event, LocalPool, Pool
from .scores import Scale
from .search import Grid, Search, Source, Trial, check_installed
from .spec import Choices, Range, Sweep, as_asked, told
from .table import Entry, Training
from .work import finished

__all__ = ["Choices", "LocalPool", "Range", "Sweep", "sweep"]

MOST_LOSSES = 3
"""of those who did a training, without it getting any further, before it counts as failed"""


def sweep(
    asked: Sweep, output: Path, pool: Callable[[Path], Pool], progress_bar: bool = False
) -> dict[str, Any]:
    """Do all trainings, and write and return what sweep.json holds.

    What `output` holds of the same sweep is not done again, and what was not finished is gone on
    with. A search may have more trials than before, a grid more seeds.

    Arguments:
        output: the directory of the sweep.
        pool: makes who does the trainings, given that directory.
        progress_bar: a bar in terminals, a line now and then elsewhere.

    Raises:
        UsageError: the sweep makes no sense here, or `output` holds something else or is in use.
    """
    scores.check_tasks(asked)
    if asked.search:
        check_installed()
    # before anything is written: a cluster that cannot be reached leaves nothing behind
    with contextlib.closing(pool(output)) as workers, held(output, "sweep"):
        scales = claim(output, asked)
        source = Search(asked, output / "study.jsonl") if asked.search else Grid(asked)
        driver = Driver(asked, output, scales, source, workers)
        with display.shown(driver.entries, asked.trainings, workers.slots, progress_bar) as watch:
            driver.run(watch)
        return driver.content()


def claim(output: Path, asked: Sweep) -> dict[str, Scale]:
    """Write down in `output` what is swept in it, or see that it is the same.

    Returns:
        how the returns of each task count.

    Raises:
        UsageError: it holds another sweep.
    """
    file, ours = output / "asked.json", as_asked(asked)
    theirs = checkpoint.read_json(file) if file.exists() else {"sweep": ours}
    before, kept = theirs.get("sweep"), theirs.get("scales")
    if not isinstance(before, dict):
        raise UsageError(f"{output} already holds something else: choose another --output")
    free = ("trials",) if asked.search else ("seeds",)
    differ = [name for name in ours if name not in free and before.get(name) != ours[name]]
    if differ:
        raise UsageError(
            f"{output} holds a sweep that differs in {', '.join(differ)}: ask for the same, or "
            "choose another --output"
        )
    scales = scores.scales(asked, kept if isinstance(kept, dict) else {})
    checkpoint.write_json(
        file, {"sweep": ours, "scales": {name: list(one) for name, one in scales.items()}}
    )
    return scales


WRITING = 0.02
"""the share of the driver's time that writing its table may take"""


class Driver:
    """Hands out trainings, and keeps account of what becomes of them."""

    def __init__(
        self,
        asked: Sweep,
        output: Path,
        scales: Mapping[str, Scale],
        source: Source,
        pool: Pool,
    ):
        self._asked, self._output, self._scales = asked, output, scales
        self._source, self._pool = source, pool
        self._before = table.earlier(output)
        self._watch = display.Watch()
        self._running: dict[str, tuple[Entry, Training]] = {}
        preset = presets.preset(asked.preset, asked.model).real_episodes
        episodes = (
            0 if "real_episodes" in asked.search else asked.fixed.get("real_episodes", preset)
        )
        self._length = episodes + 1
        """of the learning curve of each training; where they differ, only its end is looked at"""
        self.entries: list[Entry] = []
        self._written, self._due = False, 0.0

    def run(self, watch: display.Watch) -> None:
        """Until nothing is left to do."""
        self._watch = watch
        for trial in self._source.earlier():
            self._open(trial)
        try:
            while True:
                self._hand_out()
                self._written = False
                if not self._running:
                    break
                ended = False
                while not ended:
                    self._write_when_due()
                    for event in self._pool.events(1.0):
                        ended |= self._heard(event)
                    watch.waiting()
        finally:
            table.write(self._output, self.content())

    def _write_when_due(self) -> None:
        """Write the table, but never for more than a small share of the time: it grows."""
        began = time.monotonic()
        if not self._written and began >= self._due:
            table.write(self._output, self.content())
            self._written, now = True, time.monotonic()
            self._due = now + (now - began) / WRITING

    def content(self) -> dict[str, Any]:
        """What sweep.json holds."""
        return table.content(self._asked, self._scales, self.entries)

    def _hand_out(self) -> None:
        """Submit as many trainings as there are slots, of trials as few as possible."""
        while len(self._running) < self._pool.slots:
            waiting = (
                (one, each)
                for one in self.entries
                if one.state == "open"
                for each in one.trainings
                if each.status == "waiting"
            )
            following = next(waiting, None)
            if following is None:
                trial = self._source.ask()
                if trial is None:
                    return
                self._open(trial)
                continue
            one, each = following
            each.status = "running"
            each.attempts += 1
            self._running[each.job.name] = (one, each)
            self._watch.began(each)
            self._pool.submit(each.job)

    def _open(self, trial: Trial) -> None:
        """Take a trial up, with what there is of it."""
        one = table.entry(self._asked, trial, self._before)
        self.entries.append(one)
        for each in one.trainings:
            self._found(each)
            if one.state != "open":
                self._drop(one, each)
        self._advance(one)
        self._settle(one)

    def _found(self, each: Training) -> None:
        """See what is there of a training already."""
        directory = self._output / each.job.name
        try:
            summary = finished(each.job, directory)
            if summary is not None:
                self._done(each, summary)
                return
            for row in runs.read_metrics(directory):
                self._score(each, row)
        except UsageError as error:
            each.status = "failed"
            each.happened.append(str(error))

    def _score(self, each: Training, row: Mapping[str, Any]) -> None:
        """What a row of the learning curve says; of the last one, the summary says it."""
        if row.get("eval_mean_return") not in (None, ""):
            episode = int(runs.measured(dict(row), "real_episodes"))
            if episode < self._length - 1:
                value = runs.measured(dict(row), "eval_mean_return")
                each.scores[episode] = self._scales[each.task].score(value)

    def _done(self, each: Training, summary: Mapping[str, Any]) -> None:
        each.value = scores.final_return(summary)
        each.scores[self._length - 1] = self._scales[each.task].score(each.value)
        seconds = summary.get("wall_seconds")
        each.seconds = round(seconds, 3) if isinstance(seconds, int | float) else None
        each.status = "done"

    def _heard(self, event: Event) -> bool:
        """Take down what became known; returns whether a slot is free again."""
        if event.name not in self._running:
            return False
        one, each = self._running[event.name]
        if event.kind == "row":
            self._score(each, event.row or {})
            self._advance(one)
            return False
        del self._running[event.name]
        self._ended(one, each, event)
        self._watch.ended(each, _said(each, event))
        self._advance(one)
        self._settle(one)
        return True

    def _ended(self, one: Entry, each: Training, event: Event) -> None:
        if event.kind == "done":
            try:
                self._done(each, event.row or {})
            except UsageError as error:
                event = event._replace(kind="failed", why=str(error))
        if event.kind == "failed":
            each.status = "failed"
            each.happened.append(f"failed: {event.why}")
        if event.kind in ("lost", "stopped"):
            each.status = "waiting"
            self._drop(one, each)
        if event.kind == "lost":
            each.happened.append(f"lost: {event.why}")
            self._count_loss(each)

    def _count_loss(self, each: Training) -> None:
        saved = checkpoint.numbered(self._output / each.job.name / "checkpoints")
        reached = saved[0].name if saved else None
        each.losses = 1 if reached != each.reached else each.losses + 1
        each.reached = reached
        if each.losses >= MOST_LOSSES and each.status == "waiting":
            each.status = "failed"
            each.happened.append(f"failed: lost {MOST_LOSSES} times without getting any further")

    def _drop(self, one: Entry, each: Training) -> None:
        """Leave what is not done of a trial that is over."""
        if one.state != "open" and each.status == "waiting":
            each.status = "pruned" if one.state == "pruned" else "dropped"

    def _advance(self, one: Entry) -> None:
        """Report how a trial is coming along, and prune it if the others were better."""
        if one.state != "open" or not self._asked.search:
            return
        whole = self._length * len(one.trainings)
        found = scores.curve([each.scores for each in one.trainings], self._length)
        for step in range(one.reported, len(found)):
            one.reported = step + 1
            if self._source.report(one.trial.number, step, found[step]) and step < whole - 1:
                self._close(one, "pruned")
                return

    def _settle(self, one: Entry) -> None:
        """Close a trial whose trainings are over, or that cannot come to a value any more."""
        if one.state != "open":
            return
        failed = any(each.status == "failed" for each in one.trainings)
        if all(each.over for each in one.trainings) or (failed and self._asked.search):
            self._close(one, "failed" if failed else "complete")

    def _close(self, one: Entry, state: table.State) -> None:
        one.state = state
        scored = table.by_seed(one, self._scales)
        value = sum(scored) / len(scored) if state == "complete" else None
        self._source.tell(one.trial.number, state, value)
        for each in one.trainings:
            self._drop(one, each)
            if each.status == "running":
                self._pool.stop(each.job.name)


def _said(each: Training, event: Event) -> str:
    """What became of a training, in a line."""
    name = each.job.name
    if each.status == "done":
        seconds = "" if each.seconds is None else f", {each.seconds:.0f} s"
        again = f", attempt {each.attempts}" if each.attempts > 1 else ""
        return f"{name}: mean return {each.value:,.1f}{seconds}{again}"
    if each.status == "failed":
        return f"{name} {each.happened[-1]} (see {name}.log)"
    if each.status == "waiting":
        return f"{name} lost: {event.why}; it is gone on with"
    return f"{name} {each.status}"


def title(settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    """What tells a trial from the others."""
    return told({n: value for n, value in settings.items() if n not in fixed}) or "as it is"
