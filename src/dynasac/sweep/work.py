"""One training of a sweep, wherever it is done: begun, or gone on with where it was left."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import presets, recording, runs
from ..agent import DynaSAC
from ..checkpoint import read_json
from ..errors import UsageError

Row = dict[str, Any]
"""of metrics.csv"""


@dataclass(frozen=True)
class Job:
    """The training of one task with some settings and a seed: all that who does it has to know.

    JSON holds it as `dataclasses.asdict` gives it.
    """

    name: str
    """its directory within that of the sweep"""
    env: str
    """Gymnasium environment id, or MODULE:ID"""
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    """by their dotted names in Python, as `sac.learning_rate`, where they are not the preset's"""
    model: str = "auto"
    preset: str = "default"
    evaluation_episodes: int = 100


def config_of(job: Job) -> presets.Config:
    """All settings of a training.

    Raises:
        UsageError: one is unknown, of another type, or makes no sense.
    """
    plain = runs.plain(presets.preset(job.preset, job.model))
    known = runs.flat(plain)
    for name, value in job.settings.items():
        if name not in known:
            raise UsageError(f"there is no setting {name!r}; `dynasac train --help` lists them all")
        *groups, last = name.split(".")
        place = plain
        for group in groups:
            place = place[group]
        place[last] = value
    config = presets.from_plain(plain)
    presets.check(config)
    return config


def work(job: Job, directory: Path, watch: Callable[[Row], None]) -> dict[str, Any]:
    """Train in this process, from the run's last checkpoint if there is one.

    Arguments:
        directory: the run directory; what is whole in it is not done again.
        watch: called with each row of metrics.csv that is written; raising stops the training.

    Returns:
        what summary.json holds.

    Raises:
        UsageError: in one line, what went wrong.
        recording.Interrupted: by SIGTERM or Ctrl-C; the run can be gone on with.
    """
    if (directory / "config.json").exists():
        agent, run, _ = recording.resume(directory, job.env, job.model)
    else:
        agent = DynaSAC(job.env, job.model, config_of(job), job.seed)
        asked = recording.asked_for(
            agent, job.model, job.preset, evaluation_episodes=job.evaluation_episodes
        )
        run = runs.Run.create(directory, asked)
    with contextlib.closing(agent):
        if recording.is_finished(agent, directory):
            run.close()
        else:
            recording.record_training(
                agent, run, job.evaluation_episodes, progress_bar=False, watch=watch
            )
    return read_json(directory / "summary.json")
