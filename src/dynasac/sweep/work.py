"""One training of a sweep, wherever it is done: begun, or gone on with where it was left."""

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import checkpoint, presets, recording, runs
from ..agent import DynaSAC
from ..checkpoint import read_json
from ..errors import UsageError

Row = dict[str, Any]
"""of metrics.csv"""

SECONDS_FOR_THE_LAST_ONE = 20.0
"""that whoever trained in a directory before may take to end, once the sweep it was for has"""


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
    config = presets.from_plain(_asked(job))
    presets.check(config)
    return config


def _asked(job: Job) -> dict[str, Any]:
    """The settings as JSON holds them."""
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
    plain["adapt"] = presets.adapting(job.model, plain["adapt"])
    return plain


def differing(job: Job, asked: dict[str, Any]) -> list[str]:
    """The names of what a run, as its config.json says, has otherwise than it is asked for.

    What the preset leaves open the run has from its environment.
    """
    theirs = asked.get("settings")
    theirs = runs.flat(theirs) if isinstance(theirs, dict) else {}
    ours = {name: value for name, value in runs.flat(_asked(job)).items() if value is not None}
    told = {"preset": job.preset, "seed": job.seed, "evaluation_episodes": job.evaluation_episodes}
    return [
        *(name for name, value in told.items() if asked.get(name) != value),
        *(
            name
            for name, value in ours.items()
            if runs.listed(theirs.get(name)) != runs.listed(value)
        ),
    ]


def finished(job: Job, directory: Path) -> dict[str, Any] | None:
    """What summary.json holds of a training that is complete; None as long as it is not.

    Raises:
        UsageError: the directory holds another run, or is damaged.
    """
    if not (directory / "summary.json").exists():
        return None
    _refuse_another(job, directory)
    return read_json(directory / "summary.json")


def _refuse_another(job: Job, directory: Path) -> None:
    differ = differing(job, read_json(directory / "config.json"))
    if differ:
        raise UsageError(
            f"{directory} holds a run that differs in {', '.join(differ)}: move it away, or choose "
            "another --output"
        )


def work(
    job: Job,
    directory: Path,
    watch: Callable[[Row], None],
    stopped: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train in this process, from the run's last checkpoint if there is one.

    Arguments:
        directory: the run directory; what is whole in it is not done again.
        watch: called with each row of metrics.csv that is written; raising stops the training.
        stopped: asked several times a second whether to stop where it can be gone on from.

    Returns:
        what summary.json holds.

    Raises:
        UsageError: in one line, what went wrong.
        recording.Interrupted: by `stopped`, SIGTERM or Ctrl-C; the run can be gone on with.
    """
    _wait_for(directory)
    if (summary := finished(job, directory)) is not None:
        return summary
    if checkpoint.numbered(directory / "checkpoints"):
        _refuse_another(job, directory)
        agent, run, _ = recording.resume(directory, job.env, job.model)
    else:
        # whatever a process left that was killed before its first checkpoint
        shutil.rmtree(directory)
        agent = DynaSAC(job.env, job.model, config_of(job), job.seed)
        asked = recording.asked_for(
            agent, job.model, job.preset, evaluation_episodes=job.evaluation_episodes
        )
        try:
            run = runs.Run.create(directory, asked)
        except UsageError:
            agent.close()
            raise
    with contextlib.closing(agent):
        recording.record_training(
            agent,
            run,
            job.evaluation_episodes,
            progress_bar=False,
            watch=watch,
            stopped=stopped,
        )
    return read_json(directory / "summary.json")


def _wait_for(directory: Path) -> None:
    """Until nobody trains there: a worker outlives its sweep by a moment."""
    deadline = time.monotonic() + SECONDS_FOR_THE_LAST_ONE
    while True:
        try:
            with runs.locked(directory, "is being written by another process: wait for it"):
                return
        except UsageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
