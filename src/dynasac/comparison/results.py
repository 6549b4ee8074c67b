"""What came of all trainings: the content of comparison.json, read from the run directories."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import evaluation, runs
from ..checkpoint import read_json
from ..errors import UsageError
from . import statistics
from .agents import Agent, Design, Facts, training_name
from .statistics import Learning

FORMAT = 1
SOLVED_REGRET = {"Pendulum-v1": 20.0}
"""how far below the optimum counts as solved, where the environment does not say it itself"""


STANDARD_EPISODES = 100
"""what optima and thresholds are about"""
NEAR = 0.9
"""of so many real steps an evaluation must lie behind that is to stand for them"""


def gathered(
    output: Path,
    design: Design,
    facts: Facts,
    everyone: Sequence[Agent],
    errors: dict[str, str | None],
) -> dict[str, Any]:
    """What comparison.json holds, from all run directories and the errors of those that failed.

    Arguments:
        everyone: all agents that there are runs of, those that were not asked for again included.
    """
    threshold = solved(facts, design.evaluation_episodes)
    threshold = threshold if design.threshold is None else design.threshold
    found = {
        one.name: summed_up(
            one,
            [
                one_run(output, training_name(one.name, seed), seed, threshold, errors)
                for seed in seeds(output, one.name, design)
            ],
        )
        for one in everyone
    }
    _tell_matched(found)
    every_run = [run for one in found.values() for run in one["runs"]]
    standard = design.evaluation_episodes == STANDARD_EPISODES
    return {
        "format": FORMAT,
        "env_id": facts.env_id,
        "model": design.model,
        "preset": design.preset,
        "seeds": sorted({run["seed"] for run in every_run}),
        "real_steps": {one.name: one.real_steps for one in everyone},
        "evaluation": {
            "episodes": design.evaluation_episodes,
            "first_seed": evaluation.FIRST_SEED,
        },
        "optimum": evaluation.OPTIMAL_RETURN.get(facts.env_id) if standard else None,
        "threshold": threshold,
        "versions": _versions(every_run),
        "machine": _distinct(run["machine"] for run in every_run),
        "date": _distinct(run["date"] for run in every_run),
        "agents": found,
        "improvement": _improvements(found),
    }


def solved(facts: Facts, episodes: int) -> float | None:
    """The mean return that counts as solved: near the optimum, or what the environment says.

    Both are about the mean of 100 episodes; with another number of them nothing is known.
    """
    if episodes != STANDARD_EPISODES:
        return None
    if facts.env_id in SOLVED_REGRET:
        return evaluation.OPTIMAL_RETURN[facts.env_id] - SOLVED_REGRET[facts.env_id]
    return None if facts.reward_threshold is None else float(facts.reward_threshold)


def seeds(output: Path, name: str, design: Design) -> list[int]:
    """Those that were asked for and all that were ever begun, each of which has a log."""
    logs = [log.stem.removeprefix("seed-") for log in (output / name).glob("seed-*.log")]
    begun = {int(seed) for seed in logs if seed.isdecimal()}
    return sorted(begun.union(range(design.seeds) if name in design.names else ()))


def one_run(
    output: Path, name: str, seed: int, threshold: float | None, errors: dict[str, str | None]
) -> dict[str, Any]:
    """What came of one training: as far as it got, where it failed."""
    directory = output / name
    error, measured = errors.get(name), []
    try:
        measured = _measured(directory)
    except UsageError as damage:
        error = error or str(damage)
    learning = Learning([int(row.steps) for row in measured], [row.value for row in measured])
    finished = error is None and bool(measured) and (directory / "summary.json").exists()
    if not finished and error is None:
        error = "ended without a result"
    last = measured[-1] if finished else None
    asked = _asked(directory)
    return {
        "seed": seed,
        "steps": list(learning.steps),
        "returns": list(learning.returns),
        "final": learning.returns[-1] if finished else None,
        "steps_to_threshold": statistics.steps_to(threshold, learning)
        if finished and threshold is not None
        else None,
        "seconds": round(last.seconds, 3) if last else None,
        "gradient_updates": int(last.updates) if last else None,
        "error": error,
        "directory": name,
        "versions": {**_texts(asked.get("versions")), **_texts(asked.get("packages"))},
        **{"machine": None, "date": None},
        **{name: text for name, text in _texts(asked).items() if name in ("machine", "date")},
    }


class _Row(NamedTuple):
    """An evaluation."""

    steps: float
    value: float
    updates: float
    seconds: float
    """of training, evaluations left out"""


def _measured(directory: Path) -> list[_Row]:
    """The evaluations of a run; raises UsageError if they are damaged."""
    return [
        _Row(
            runs.measured(row, "real_steps"),
            runs.measured(row, "eval_mean_return"),
            runs.measured(row, "gradient_updates"),
            runs.measured(row, "wall_seconds")
            - (runs.measured(row, "evaluate_seconds") if row.get("evaluate_seconds") else 0.0),
        )
        for row in runs.read_metrics(directory)
        if row.get("eval_mean_return")
    ]


def _texts(content: Any) -> dict[str, str]:
    """What of a JSON object is text."""
    found = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in found if isinstance(value, str)}


def summed_up(one: Agent, ended: list[dict[str, Any]]) -> dict[str, Any]:
    """An agent's trainings together; those that failed count in none of the numbers."""
    finished = [run for run in ended if run["error"] is None]
    finals = [run["final"] for run in finished]
    reached = [run["steps_to_threshold"] for run in finished]
    curve = None
    if finished:
        curve = statistics.curve([Learning(run["steps"], run["returns"]) for run in finished])
    return {
        "about": one.about,
        "settings": one.settings,
        "runs": ended,
        "iqm": statistics.estimate(finals, statistics.iqm)._asdict() if finals else None,
        "mean": statistics.estimate(finals, statistics.mean)._asdict() if finals else None,
        "curve": curve._asdict() if curve else {"steps": [], "iqm": [], "low": [], "high": []},
        "steps_to_threshold": {
            "median": statistics.median(reached),
            "reached": sum(steps is not None for steps in reached),
            "runs": len(finished),
        },
        "steps": {"median": statistics.median([run["steps"][-1] for run in finished])},
        "gradient_updates": {
            "median": statistics.median([run["gradient_updates"] for run in finished])
        },
        "seconds": {"median": statistics.median([run["seconds"] for run in finished])},
    }


def _tell_matched(found: dict[str, dict[str, Any]]) -> None:
    """How many updates the matched agent made for each of dynasac's with the same seed."""
    if not {"sac-matched", "dynasac"} <= set(found):
        return
    made = {run["seed"]: run["gradient_updates"] for run in found["dynasac"]["runs"]}
    shares = [
        run["gradient_updates"] / made[run["seed"]]
        for run in found["sac-matched"]["runs"]
        if run["gradient_updates"] and made.get(run["seed"])
    ]
    found["sac-matched"]["updates_to_dynasac"] = {"median": statistics.median(shares)}


def _improvements(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the first agent over each of the others."""
    finished = {
        name: [Learning(run["steps"], run["returns"]) for run in one["runs"] if not run["error"]]
        for name, one in found.items()
    }
    (first, ours), *others = finished.items()
    return [
        {"better": first, "than": name, **_improvement(ours, theirs, steps)}
        for name, theirs in others
        if ours and theirs
        for steps in _when(ours, theirs)
    ]


def _when(ours: Sequence[Learning], theirs: Sequence[Learning]) -> list[int | None]:
    """Real steps after which two agents can be told apart; None for the end of each run.

    Where these are not the same, also as many as all runs have made, if all were evaluated then.
    """
    every_run = [*ours, *theirs]
    ends = {run.steps[-1] for run in every_run}
    common = min(ends)
    evaluated = all(any(NEAR * common <= s <= common for s in run.steps) for run in every_run)
    return [None, common] if len(ends) > 1 and evaluated else [None]


def _improvement(
    ours: Sequence[Learning], theirs: Sequence[Learning], steps: int | None
) -> dict[str, Any]:
    values = [
        [float(statistics.carried_forward(run, [steps or run.steps[-1]])[0]) for run in agent]
        for agent in (ours, theirs)
    ]
    probability, low, high = statistics.improvement(*values)
    return {
        "better_steps": steps or statistics.median([run.steps[-1] for run in ours]),
        "than_steps": steps or statistics.median([run.steps[-1] for run in theirs]),
        "probability": probability,
        "low": low,
        "high": high,
    }


def _asked(directory: Path) -> dict[str, Any]:
    try:
        return read_json(directory / "config.json")
    except UsageError:
        return {}


def _versions(every_run: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of every package those that the runs were made with."""
    packages = dict.fromkeys(package for run in every_run for package in run["versions"])
    return {
        package: _distinct(run["versions"].get(package) for run in every_run)
        for package in packages
    }


def _distinct(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({value for value in values if value}))
