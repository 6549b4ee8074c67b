"""What became of every training and trial: sweep.json and results.csv, and what they say."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import checkpoint
from ..errors import UsageError
from .scores import Scale
from .search import State, Trial
from .spec import Sweep, jobs, option, task_name
from .work import Job

FORMAT = 1

Status = Literal["waiting", "running", "done", "failed", "pruned", "dropped"]


@dataclass
class Training:
    """One task, setting and seed, and what has become of it."""

    job: Job
    trial: int
    status: Status = "waiting"
    value: float | None = None
    """the mean return of the final policy"""
    attempts: int = 0
    happened: list[str] = field(default_factory=list)
    """in words, whatever was not to be expected"""
    seconds: float | None = None
    """of training, as summary.json has them"""
    scores: dict[int, float] = field(default_factory=dict)
    """after so many real episodes"""
    losses: int = 0
    """of whoever did it, since it last got any further"""
    reached: str | None = None
    """its newest checkpoint when it was last lost"""

    @property
    def task(self) -> str:
        return task_name(self.job.env)

    @property
    def over(self) -> bool:
        return self.status not in ("waiting", "running")


@dataclass
class Entry:
    """A trial and its trainings."""

    trial: Trial
    trainings: list[Training]
    state: State = "open"
    reported: int = 0
    """steps of its learning curve"""


def entry(sweep: Sweep, trial: Trial, earlier: Mapping[str, Mapping[str, Any]]) -> Entry:
    """A trial as it begins, with what an earlier process knew of its trainings."""
    trainings = [Training(job, trial.number) for job in jobs(sweep, trial.number, trial.settings)]
    for each in trainings:
        before = earlier.get(each.job.name, {})
        attempts, happened = before.get("attempts"), before.get("happened")
        each.attempts = attempts if type(attempts) is int and attempts > 0 else 0
        if isinstance(happened, list):
            each.happened = [said for said in happened if isinstance(said, str)]
        if before.get("status") == "failed" and trial.state != "open":
            each.status = "failed"
        if before.get("status") == "running":
            each.happened.append("the sweep ended")
    return Entry(trial, trainings, trial.state)


def earlier(output: Path) -> dict[str, Mapping[str, Any]]:
    """What sweep.json says of each training, by its name; nothing if there is none, or damaged."""
    try:
        trials = checkpoint.read_json(output / "sweep.json").get("trials")
    except UsageError:
        return {}
    found = {}
    for trial in trials if isinstance(trials, list) else []:
        trainings = trial.get("runs") if isinstance(trial, dict) else None
        for each in trainings if isinstance(trainings, list) else []:
            if isinstance(each, dict) and isinstance(each.get("directory"), str):
                found[each["directory"]] = each
    return found


def by_seed(one: Entry, scales: Mapping[str, Scale]) -> list[float]:
    """The mean score over tasks for each seed, of a trial whose trainings are done."""
    found: dict[int, list[float]] = {}
    for each in one.trainings:
        if each.value is not None:
            found.setdefault(each.job.seed, []).append(scales[each.task].score(each.value))
    return [float(np.mean(scores)) for scores in found.values()]


def content(sweep: Sweep, scales: Mapping[str, Scale], entries: Sequence[Entry]) -> dict[str, Any]:
    """What sweep.json holds."""
    several = len(sweep.envs) > 1
    return {
        "format": FORMAT,
        "tasks": [task_name(env) for env in sweep.envs],
        "scales": {name: list(scale) for name, scale in scales.items()} if several else None,
        "seeds": list(range(sweep.first_seed, sweep.first_seed + sweep.seeds)),
        "evaluation_episodes": sweep.evaluation_episodes,
        "searched": list(sweep.search) or None,
        "trials": [_trial(sweep, scales, one) for one in entries],
    }


def _trial(sweep: Sweep, scales: Mapping[str, Scale], one: Entry) -> dict[str, Any]:
    complete = one.state == "complete"
    scores = by_seed(one, scales) if complete else []
    return {
        "number": one.trial.number,
        "settings": one.trial.settings,
        "state": one.state,
        "value": float(np.mean(scores)) if scores else None,
        "spread": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "runs": [
            {
                "directory": each.job.name,
                "task": each.task,
                "seed": each.job.seed,
                "status": each.status,
                "mean_return": each.value,
                "attempts": each.attempts,
                "happened": each.happened,
                "seconds": each.seconds,
            }
            for each in one.trainings
        ],
    }


def write(output: Path, told: Mapping[str, Any]) -> None:
    """Write sweep.json and results.csv, each whole or not at all."""
    checkpoint.write_json(output / "sweep.json", dict(told))
    checkpoint.write_bytes(output / "results.csv", rows(told).encode())


def rows(told: Mapping[str, Any]) -> str:
    """results.csv: a row for each training."""
    names = list(dict.fromkeys(name for trial in told["trials"] for name in trial["settings"]))
    own = ("status", "mean_return", "attempts", "seconds")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "task", "seed", *map(option, names), *own, "happened", "directory"])
    for trial in told["trials"]:
        settings = [trial["settings"].get(name) for name in names]
        for each in trial["runs"]:
            what = [each[name] for name in own]
            happened, where = "; ".join(each["happened"]), each["directory"]
            table.writerow(
                [trial["number"], each["task"], each["seed"], *settings, *what, happened, where]
            )
    return text.getvalue()


def ranked(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials, the best one first; those without a value, pruned or failed, at the end."""
    order = ["complete", "open", "pruned", "failed"]
    return sorted(
        told["trials"],
        key=lambda trial: (
            order.index(trial["state"]),
            -(trial["value"] if trial["value"] is not None else 0.0),
            trial["number"],
        ),
    )
