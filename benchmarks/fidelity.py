"""Models that are wrong, learned or simulated: what they are worth after few real episodes.

Every function is a part of its own. A curve is the mean return over the 100 fixed episodes after
each count of real episodes, 0 included, of the deterministic policy as it then is.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynasac import DynaSAC, Pendulum, evaluation, presets
from dynasac.models import DynamicsModel, HostModel, simulator_of

from . import report, worlds

SEEDS = range(10)
SOLVED = 20.0
"""regret on Pendulum-v1, at a count of real episodes and the next two"""
PUBLISHED_PHIHP = -263.0
"""El Asri et al. 2024: -263 ± 144 after 2,000 real steps"""


def parameters(quick: bool) -> dict:
    """Wrong parameters, exact observations."""
    return _wrong_parameters("Pendulum-v1", must=2, share=1.0, quick=quick)


def noise(quick: bool) -> dict:
    """Wrong parameters, observations with noise of 1% of their range."""
    return _wrong_parameters("NoisyPendulum-v0", must=3, share=0.9, quick=quick)


def _wrong_parameters(env_id: str, must: int, share: float, quick: bool) -> dict:
    model = Pendulum(**worlds.WRONG_PARAMETERS)
    runs = [curve(env_id, model, seed, must + 2, quick) for seed in _seeds(SEEDS, quick)]
    return {"runs": runs, **_solved(runs, must, aim=1, share=share)}


def no_physics(quick: bool) -> dict:
    """Pendulum-v1 with a model learned from nothing."""
    runs = [
        curve("Pendulum-v1", "ensemble", seed, 7, quick, lambda r: solved_at(r) is not None)
        for seed in _seeds(SEEDS, quick)
    ]
    found = _solved(runs, must=5, aim=5, share=0.9)
    counts = [np.inf if run["solved_at"] is None else run["solved_at"] for run in runs]
    median = float(np.median(counts))
    value = median if np.isfinite(median) else None
    found["targets"].append(report.target("real episodes until solved, median", value, 3, 1, False))
    return {"runs": runs, **found}


def friction(quick: bool) -> dict:
    """Viscous friction that the model leaves out."""
    runs = []
    for seed in _seeds(SEEDS, quick):
        exact = curve("FrictionPendulum-v0", worlds.FrictionPendulum(), seed, 0, quick)
        rough = curve("FrictionPendulum-v0", Pendulum(), seed, 2, quick)
        runs.append({**rough, "exact_model": exact["returns"][0]})
    lost = {
        episodes: [run["exact_model"] - run["returns"][episodes] for run in runs]
        for episodes in (1, 2)
    }
    worst = {episodes: max(values) for episodes, values in lost.items()}
    means = {episodes: float(np.mean(values)) for episodes, values in lost.items()}
    what = "return lost against the exact model"
    return {
        "runs": runs,
        "lost": {str(episodes): report.mean_interval(values) for episodes, values in lost.items()},
        "targets": [
            report.target(f"{what}, after 400 real steps, mean", means[2], 10, 10, False),
            report.target(f"{what}, after 400 real steps, worst seed", worst[2], 10, 10, False),
            report.target(f"{what}, after 200 real steps, mean", means[1], None, 10, False),
        ],
    }


def unlimited(quick: bool) -> dict:
    """Friction, no limit of speed, observed as (angle, velocity): PhIHP's variant."""
    model = worlds.UnlimitedPendulum()
    runs = [curve("UnlimitedPendulum-v0", model, seed, 2, quick) for seed in _seeds(SEEDS, quick)]
    mean = float(np.mean([run["returns"][2] for run in runs]))
    what = "mean return after 400 real steps (PhIHP: -263 after 2,000)"
    return {"runs": runs, "targets": [report.target(what, mean, PUBLISHED_PHIHP, -228, True)]}


def car(quick: bool) -> dict:
    """MountainCarContinuous-v0 with a model learned from nothing."""
    env_id = "MountainCarContinuous-v0"
    runs = [curve(env_id, "ensemble", seed, 3, quick) for seed in _seeds(SEEDS, quick)]
    reached = [sum(max(run["returns"][: n + 1]) >= 90 for run in runs) for n in range(4)]
    last = sum(run["returns"][-1] >= 90 for run in runs)
    return {
        "runs": runs,
        "seeds_at_90_by_episode": reached,
        "targets": [
            report.target("seeds of ten at 90 or more after 3 real episodes", last, 8, 10, True),
            report.target("… by 1 real episode", reached[1], None, 8, True),
        ],
    }


def harmful(quick: bool) -> dict:
    """A model whose torque has the wrong sign, against no model at equal real steps."""
    episodes = 5
    seeds = _seeds(SEEDS, quick)
    runs = [curve("Pendulum-v1", worlds.TurnedPendulum(), seed, episodes, quick) for seed in seeds]
    without = [curve("Pendulum-v1", "none", seed, episodes, quick) for seed in seeds]
    difference = [
        float(np.mean([run["returns"][n] for run in runs]))
        - float(np.mean([run["returns"][n] for run in without]))
        for n in range(episodes + 1)
    ]
    found = _solved(runs, must=episodes - 2, aim=1, share=1.0)
    worse = min(difference[1:])
    what = "mean return less that without a model, worst of 1 to 5 real episodes"
    found["targets"].append(report.target(what, worse, 0, 0, True))
    return {"runs": runs, "without": without, "difference": difference, **found}


def simulators(quick: bool) -> dict:
    """MuJoCo environments with their own simulator as the model, no real episode."""
    result: dict = {"tasks": {}, "targets": []}
    for env_id, must in (("InvertedPendulum-v5", 950.0), ("InvertedDoublePendulum-v5", 9000.0)):
        runs = [curve(env_id, "auto", seed, 0, quick) for seed in _seeds(range(5), quick)]
        result["tasks"][env_id] = runs
        worst = min(run["returns"][0] for run in runs)
        slowest = max(run["seconds"] for run in runs)
        result["targets"] += [
            report.target(f"{env_id}, mean return of the worst seed", worst, must, must, True),
            report.target(f"{env_id}, seconds of the slowest seed", slowest, None, 120, False),
        ]
    return result


def balance(quick: bool) -> dict:
    """InvertedPendulum-v5 with a model learned from nothing."""
    seeds = _seeds(SEEDS, quick)
    runs = [
        curve("InvertedPendulum-v5", "ensemble", seed, 10, quick, lambda r: r[-1] >= 950)
        for seed in seeds
    ]
    counts = [
        next((n for n, value in enumerate(run["returns"]) if value >= 950), None) for run in runs
    ]
    slowest = None if None in counts else float(max(counts))
    return {
        "runs": runs,
        "episodes_to_950": counts,
        "targets": [report.target("real episodes to 950, worst seed", slowest, 10, 5, False)],
    }


HOPPER_UPDATES = 40_000
HOPPER_STEPS = 20_000


def hopper(quick: bool) -> dict:
    """Hopper-v5, its simulator with a torso 20% heavier as the model, at most 20,000 real steps."""
    seeds = _seeds(range(3), quick)
    ours = [_hopper(seed, quick) for seed in seeds]
    without = [_hopper_without(seed, quick) for seed in seeds]
    means = [float(np.mean([run["return"] for run in group])) for group in (ours, without)]
    return {
        "runs": ours,
        "without": without,
        "real_steps": HOPPER_STEPS,
        "targets": [
            report.target("mean return with the heavier simulator", means[0], means[1], 3000, True)
        ],
    }


def _hopper(seed: int, quick: bool) -> dict:
    """Plan in the simulator, then collect real steps and plan on both."""
    config = presets.DEFAULT
    planning = dataclasses.replace(config.planning, first_updates=HOPPER_UPDATES, updates=1000)
    config = dataclasses.replace(config, planning=planning, updates_per_real_step=0)
    config = shortened(config) if quick else config
    model = simulator_of(worlds.heavier_hopper(1.2))
    agent = DynaSAC("Hopper-v5", model, config, seed)
    started = time.perf_counter()
    agent.learn(real_episodes=0)
    before = agent.evaluate(20).mean_return
    agent.learn(total_timesteps=400 if quick else HOPPER_STEPS)
    seconds = time.perf_counter() - started
    value = agent.evaluate(100).mean_return
    print(f"  seed {seed}: {before:.0f} in the simulator's policy, {value:.0f} after", flush=True)
    return {"seed": seed, "before": before, "return": value, "seconds": round(seconds, 1)}


def _hopper_without(seed: int, quick: bool) -> dict:
    """Plain SAC on as many real steps."""
    agent = DynaSAC("Hopper-v5", "none", presets.MODEL_FREE, seed)
    started = time.perf_counter()
    agent.learn(total_timesteps=400 if quick else HOPPER_STEPS)
    seconds = time.perf_counter() - started
    value = agent.evaluate(100).mean_return
    print(f"  seed {seed} without a model: {value:.0f}", flush=True)
    return {"seed": seed, "return": value, "seconds": round(seconds, 1)}


class _Curve:
    """A callback that evaluates, and stops when the return is good enough."""

    def __init__(self, episodes: int, stop: Callable[[list[float]], bool]):
        self._episodes, self._stop = episodes, stop
        self.returns: list[float] = []
        self.steps: list[int] = []
        self.rungs: list[str] = []
        self.decisions: list[str] = []

    def __call__(self, agent: DynaSAC, row: dict[str, Any]) -> bool:
        self.returns.append(agent.evaluate(self._episodes).mean_return)
        self.steps.append(row["real_steps"])
        self.rungs.append(row["adapt_rung"])
        self.decisions.append(row["decision"])
        return not self._stop(self.returns)


def curve(
    env_id: str,
    model: DynamicsModel | HostModel | str,
    seed: int,
    real_episodes: int,
    quick: bool,
    stop: Callable[[list[float]], bool] = lambda returns: False,
) -> dict:
    """Train with the default settings of a model, or of plain SAC, and evaluate on the way."""
    config = presets.preset("default", model if isinstance(model, str) else "auto")
    agent = DynaSAC(env_id, model, shortened(config) if quick else config, seed)
    watch = _Curve(10 if quick else 100, stop)
    started = time.perf_counter()
    agent.learn(real_episodes=real_episodes, callback=watch)
    shown = ", ".join(f"{value:.1f}" for value in watch.returns)
    print(f"  {env_id} seed {seed}: {shown} ({watch.rungs[-1]})", flush=True)
    return {
        "seed": seed,
        "returns": watch.returns,
        "real_steps": watch.steps,
        "rungs": watch.rungs,
        "decisions": watch.decisions,
        "seconds": round(time.perf_counter() - started, 1),
        "solved_at": solved_at(watch.returns),
    }


def solved_at(returns: Sequence[float]) -> int | None:
    """The first count of real episodes with a regret of at most SOLVED, there and at two more."""
    optimum = evaluation.OPTIMAL_RETURN["Pendulum-v1"]
    good = [optimum - value <= SOLVED for value in returns]
    for count in range(1, len(good) - 2):
        if all(good[count : count + 3]):
            return count
    return None


def _solved(runs: list[dict], must: int, aim: int, share: float) -> dict:
    counts = [run["solved_at"] for run in runs]
    within = sum(count is not None and count <= must for count in counts) / len(runs)
    best = sum(count is not None and count <= aim for count in counts) / len(runs)
    return {
        "solved_at": counts,
        "targets": [
            report.target(f"share of seeds solved by real episode {must}", within, share, 1, True),
            report.target(f"share of seeds solved by real episode {aim}", best, None, share, True),
        ],
    }


def _seeds(seeds: range, quick: bool) -> range:
    return seeds[:1] if quick else seeds


def shortened(config: presets.Config) -> presets.Config:
    planning = dataclasses.replace(config.planning, first_updates=50, updates=50)
    ensemble = dataclasses.replace(config.ensemble, updates=50)
    return dataclasses.replace(config, planning=planning, ensemble=ensemble)
