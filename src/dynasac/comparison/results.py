"""What came of all trainings: the content of comparison.json, read from the run directories."""

import contextlib
import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import baselines, evaluation, runs
from . import statistics
from .agents import Agent, Design, Facts, training_name
from .processes import processors
from .statistics import Learning

FORMAT = 1
SOLVED_REGRET = {"Pendulum-v1": 20.0}
"""how far below the optimum counts as solved, where the environment does not say it itself"""


def gathered(
    output: Path,
    design: Design,
    facts: Facts,
    contenders: Sequence[Agent],
    errors: dict[str, str | None],
) -> dict[str, Any]:
    """What comparison.json holds, from the run directories and the errors of those that failed."""
    threshold = solved(facts) if design.threshold is None else design.threshold
    standard = design.evaluation_episodes == 100
    found = {
        one.name: summed_up(
            one,
            [
                one_run(output, training_name(one.name, seed), seed, threshold, errors)
                for seed in range(design.seeds)
            ],
        )
        for one in contenders
    }
    return {
        "format": FORMAT,
        "env_id": facts.env_id,
        "model": design.model,
        "preset": design.preset,
        "seeds": list(range(design.seeds)),
        "real_steps": {one.name: one.real_steps for one in contenders},
        "evaluation": {
            "episodes": design.evaluation_episodes,
            "first_seed": evaluation.FIRST_SEED,
        },
        "optimum": evaluation.OPTIMAL_RETURN.get(facts.env_id) if standard else None,
        "threshold": threshold,
        "versions": {**runs.versions(), **baselines.versions()},
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "agents": found,
        "improvement": _improvements(found),
    }


def solved(facts: Facts) -> float | None:
    """The mean return that counts as solved: near the optimum, or what the environment says."""
    if facts.env_id in SOLVED_REGRET:
        return evaluation.OPTIMAL_RETURN[facts.env_id] - SOLVED_REGRET[facts.env_id]
    return None if facts.reward_threshold is None else float(facts.reward_threshold)


def one_run(
    output: Path, name: str, seed: int, threshold: float | None, errors: dict[str, str | None]
) -> dict[str, Any]:
    """What came of one training: as far as it got, where it failed."""
    directory = output / name
    rows = [row for row in runs.read_metrics(directory) if row.get("eval_mean_return")]
    learning = Learning(
        [int(row["real_steps"]) for row in rows], [float(row["eval_mean_return"]) for row in rows]
    )
    error = errors.get(name)
    finished = error is None and (directory / "summary.json").exists()
    if not finished and error is None:
        error = "ended without a result"
    last = rows[-1] if finished else None
    return {
        "seed": seed,
        "steps": list(learning.steps),
        "returns": list(learning.returns),
        "final": learning.returns[-1] if finished else None,
        "steps_to_threshold": statistics.steps_to(threshold, learning)
        if finished and threshold is not None
        else None,
        # of training, evaluations left out
        "seconds": round(float(last["wall_seconds"]) - float(last["evaluate_seconds"] or 0), 3)
        if last
        else None,
        "gradient_updates": int(last["gradient_updates"]) if last else None,
        "error": error,
        "directory": name,
    }


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
        "seconds": {"median": statistics.median([run["seconds"] for run in finished])},
    }


def _improvements(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the first agent over each of the others."""
    finals = {
        name: [run["final"] for run in one["runs"] if run["error"] is None]
        for name, one in found.items()
    }
    (first, ours), *others = finals.items()
    improvements = []
    for name, theirs in others:
        if ours and theirs:
            probability, low, high = statistics.improvement(ours, theirs)
            improvements.append(
                {
                    "better": first,
                    "than": name,
                    "probability": probability,
                    "low": low,
                    "high": high,
                }
            )
    return improvements


def machine() -> str:
    """The processor, how many of them, and the system."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    return f"{cpu}, {processors()} cores, {platform.system()}"
