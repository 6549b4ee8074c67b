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
from pathlib import Path
from typing import NamedTuple

from dynasac import checkpoint
from dynasac.sweep.pool import Pool
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
    "sac.hidden": [32, 32],
    "sac.batch_size": 32,
    "updates_per_real_step": 1,
    "replay_capacity": 1000,
    "adapt": "none",
}


def job(seed: int) -> Job:
    return Job(f"seed-{seed}", "Pendulum-v1", seed, SETTINGS, "none", evaluation_episodes=2)


def run(quick: bool) -> dict:
    trainings, kills = (10, 2) if quick else (TRAININGS, KILLS)
    jobs = [job(seed) for seed in range(trainings)]
    with tempfile.TemporaryDirectory() as name:
        disturbed, calm = Path(name) / "disturbed", Path(name) / "calm"
        killer = Killer(kills, trainings)
        started = time.monotonic()
        with contextlib.closing(RayPool("local", disturbed)) as pool:
            told = driven(pool, jobs, disturbed, killer)
        seconds = time.monotonic() - started
        whole = [each for each in jobs if (disturbed / each.name / "summary.json").exists()]
        hit = [each for each in whole if told.lost[each.name]]
        again = hit + [each for each in whole if each not in hit][:UNDISTURBED]
        with contextlib.closing(RayPool("local", calm)) as pool:
            driven(pool, again, calm, Killer(0, trainings))
        touched = [each for each in whole if written(disturbed, each) != told.written[each.name]]
        repeated = sum(count - 1 for count in told.done.values()) + len(touched)
        summaries = [checkpoint.read_json(disturbed / each.name / "summary.json") for each in whole]
        identical = sum(same(disturbed / each.name, calm / each.name) for each in again)
    found = {
        "trainings": trainings,
        "kills": killer.killed,
        "workers_lost": told.lost.total(),
        "trainings_disturbed": len(told.lost),
        "gone_on_with_from_a_checkpoint": told.resumed,
        "results": len(whole),
        "repeated": repeated,
        "failed": told.failed,
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


class Told(NamedTuple):
    """What became of trainings; how often, by their names."""

    done: collections.Counter[str]
    lost: collections.Counter[str]
    failed: list[str]
    resumed: int
    written: dict[str, int]
    """when the summary was written with which each was done"""


def driven(pool: Pool, jobs: list[Job], output: Path, killer: "Killer") -> Told:
    """Have all of them done, and those that were lost again."""
    waiting, running = list(reversed(jobs)), {}
    done, lost, failed, resumed = collections.Counter(), collections.Counter(), [], 0
    stamps = {}
    while waiting or running:
        while waiting and len(running) < pool.slots:
            following = waiting.pop()
            resumed += bool(checkpoint.numbered(output / following.name / "checkpoints"))
            running[following.name] = following
            pool.submit(following)
        for event in pool.events(0.1):
            if event.kind == "row":
                continue
            over = running.pop(event.name)
            if event.kind == "done":
                done[event.name] += 1
                stamps[event.name] = written(output, over)
            elif event.kind == "lost":
                lost[event.name] += 1
                waiting.append(over)
            else:
                failed.append(f"{event.name} {event.kind}: {event.why}")
        killer.look(done.total())
    return Told(done, lost, failed, resumed, stamps)


def written(output: Path, job: Job) -> int:
    """When the summary of a training was written, ns."""
    return (output / job.name / "summary.json").stat().st_mtime_ns


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
