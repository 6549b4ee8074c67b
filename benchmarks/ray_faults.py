"""Trainings through Ray on this machine, whose workers are killed at random moments.

Each is short, Pendulum-v1 without a model, and leaves a checkpoint after each of its episodes. A
worker that is at one is chosen at random and gets SIGKILL, again and again. In the end each
training must have its result, none may have been done twice, and those that were disturbed must
hold the bytes of others, on the same workers, that were not.
"""

import collections
import contextlib
import os
import random
import re
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynasac import checkpoint
from dynasac.sweep import Sweep, sweep
from dynasac.sweep.pool import Event
from dynasac.sweep.ray_pool import RayPool
from dynasac.sweep.work import Job

from . import report
from .reliability import _same as same

TRAININGS, KILLS = 200, 20
UNDISTURBED = 5
"""of those that nobody killed, trained again"""
LONGEST_WAIT = 2.0
"""seconds, about as long as a training, between the moment that is chosen for a kill and it"""

SETTINGS = {
    "real_episodes": 4,
    "sac.hidden": (32, 32),
    "sac.batch_size": 32,
    "updates_per_real_step": 1,
    "replay_capacity": 1000,
    "adapt": "none",
}


def run(quick: bool) -> dict:
    trainings, kills = (10, 2) if quick else (TRAININGS, KILLS)
    with tempfile.TemporaryDirectory() as name:
        disturbed, calm = Path(name) / "disturbed", Path(name) / "calm"
        killer, told = Killer(kills, trainings), Told()
        started = time.monotonic()
        content = swept(disturbed, trainings, told, killer)
        seconds = time.monotonic() - started
        runs = [each for trial in content["trials"] for each in trial["runs"]]
        whole = [each["directory"] for each in runs if each["status"] == "done"]
        hit = [name for name in whole if told.lost[name]]
        # those that were hit lie anywhere among them: their seeds are trained again, and a few more
        again = hit + [name for name in whole if name not in hit][:UNDISTURBED]
        with contextlib.closing(RayPool("local", calm)) as pool:
            driven(pool, [told.jobs[name] for name in again])
        touched = [name for name in whole if written(disturbed, name) != told.written[name]]
        repeated = sum(count - 1 for count in told.done.values()) + len(touched)
        summaries = [checkpoint.read_json(disturbed / name / "summary.json") for name in whole]
        identical = sum(same(disturbed / name, calm / name) for name in again)
    found = {
        "trainings": trainings,
        "kills": killer.killed,
        "workers_lost": told.lost.total(),
        "trainings_disturbed": len(told.lost),
        "gone_on_with_from_a_checkpoint": told.resumed,
        "results": len(whole),
        "repeated": repeated,
        "failed": [each["directory"] for each in runs if each["status"] == "failed"],
        "compared": len(again),
        "identical": identical,
        "seconds_of_all": round(seconds, 1),
        "seconds_of_one": report.spread([each["wall_seconds"] for each in summaries]),
        "compiled_in": sum(each["compile_seconds"] > 0 for each in summaries),
        "settings": SETTINGS,
    }
    print(f"  {found}")
    return {
        **found,
        "targets": [
            report.target("workers killed by SIGKILL", killer.killed, kills, kills, True),
            report.target("results", len(whole), trainings, trainings, True),
            report.target("trainings done twice", repeated, 0, 0, False),
            report.target("trainings lost", trainings - len(told.done), 0, 0, False),
            report.target("bytes not those of others", len(again) - identical, 0, 0, False),
        ],
    }


@dataclass
class Told:
    """What became of trainings; how often, by their names."""

    done: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: collections.Counter[str] = field(default_factory=collections.Counter)
    resumed: int = 0
    written: dict[str, int] = field(default_factory=dict)
    """when the summary was written with which each was done"""
    jobs: dict[str, Job] = field(default_factory=dict)


class Disturbed:
    """A pool some of whose workers are killed, and which keeps account of what came of it."""

    def __init__(self, output: Path, told: Told, killer: "Killer"):
        self._pool, self._output = RayPool("local", output), output
        self._told, self._killer = told, killer
        self.slots = self._pool.slots
        self.stop, self.close = self._pool.stop, self._pool.close

    def submit(self, job: Job) -> None:
        saved = checkpoint.numbered(self._output / job.name / "checkpoints")
        self._told.resumed += bool(saved)
        self._told.jobs[job.name] = job
        self._pool.submit(job)

    def events(self, seconds: float) -> list[Event]:
        found = self._pool.events(min(seconds, 0.1))
        for event in found:
            if event.kind == "done":
                self._told.done[event.name] += 1
                self._told.written[event.name] = written(self._output, event.name)
            elif event.kind == "lost":
                self._told.lost[event.name] += 1
        self._killer.look(self._told.done.total())
        return found


def swept(output: Path, trainings: int, told: Told, killer: "Killer") -> dict[str, Any]:
    """What a sweep comes to some of whose workers are killed."""
    asked = Sweep(
        ("Pendulum-v1",), model="none", seeds=trainings, fixed=SETTINGS, evaluation_episodes=2
    )
    return sweep(asked, output, lambda place: Disturbed(place, told, killer))


def driven(pool: RayPool, jobs: list[Job]) -> None:
    """Have all of them done by workers that nobody kills."""
    for job in jobs:
        pool.submit(job)
    left = len(jobs)
    while left:
        left -= sum(event.kind != "row" for event in pool.events(1.0))


def written(output: Path, name: str) -> int:
    """When the summary of a training was written, ns."""
    return (output / name / "summary.json").stat().st_mtime_ns


class Killer:
    """Kills workers at random moments while a sweep goes on."""

    def __init__(self, kills: int, trainings: int):
        self._rng = random.Random(0)
        chosen = (self._rng.uniform(0, 0.95 * trainings) for _ in range(kills))
        self._after = sorted(map(int, chosen), reverse=True)
        """how many trainings are through when the next one comes"""
        self._at: float | None = None
        self.killed = 0

    def look(self, through: int) -> None:
        """Kill one, if it is time to."""
        if self._at is None and self._after and through >= self._after[-1]:
            self._after.pop()
            self._at = time.monotonic() + self._rng.uniform(0, LONGEST_WAIT)
        if self._at is None or time.monotonic() < self._at:
            return
        busy = workers("ray::train")
        if busy:
            os.kill(self._rng.choice(busy), signal.SIGKILL)
            self.killed += 1
            self._at = None


def workers(title: str) -> list[int]:
    """Processes of the Ray that this process began, which say that they do this."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_text().startswith(title) and _begun_here(folder):
                found.append(int(folder.name))
    return sorted(found)


def _begun_here(folder: Path) -> bool:
    parent = re.search(r"^PPid:\t(\d+)", (folder / "status").read_text(), re.MULTILINE)
    assert parent is not None
    above = int(parent[1])
    return above == os.getpid() or (above > 1 and _begun_here(folder.parent / str(above)))
