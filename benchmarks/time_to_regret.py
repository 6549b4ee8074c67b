"""Seconds of computing until the policy is within 20 of the optimum on Pendulum-v1.

Ours plans in the exact model; SBX's SAC, with its defaults, learns from the real environment. Both
are stopped every so often to be measured, with the clock stopped too. Compiling is apart: ours is
compiled beforehand with another seed, and what the compiler took in between is taken off for both.
SBX's clock includes its steps in the environment.
"""

import time
from collections.abc import Callable

import jax
import numpy as np

from dynasac import DynaSAC, evaluation, planning, presets, training
from dynasac.runs import CompileClock

from . import report

REGRET = 20.0
SEEDS = range(10)
PEER_SEEDS = range(3)
CHUNK = 10 * planning.ROUND
"""updates of ours between two measurements"""
SHORT_PHASE = 1000
"""updates over which the learning rate is taken down in the second variant"""
PEER_CHUNK = 500
"""real steps of SBX between two measurements"""
PEER_LIMIT = 15_000
"""real steps after which SBX's seconds count as if it had got there"""


class ComputingClock:
    """Adds up seconds of computing, without those that JAX spent on compiling."""

    def __init__(self):
        self.seconds = 0.0
        self.compiling = 0.0
        self._compiler = CompileClock()

    def time(self, work: Callable[[], object]) -> None:
        compiled, started = self._compiler.seconds, time.perf_counter()
        work()
        wall = time.perf_counter() - started
        compiled = self._compiler.seconds - compiled
        self.compiling += compiled
        self.seconds += max(wall - compiled, 0.0)


def run(quick: bool) -> dict:
    seeds, peers = (SEEDS[:1], PEER_SEEDS[:1]) if quick else (SEEDS, PEER_SEEDS)
    default = presets.DEFAULT.planning.first_updates
    lengths = {"default": 200 if quick else default, "short": 200 if quick else SHORT_PHASE}
    ours_to_regret(10_000, CHUNK)
    ours = {
        name: {"first_updates": length, "runs": [ours_to_regret(seed, length) for seed in seeds]}
        for name, length in lengths.items()
    }
    limit = 1000 if quick else PEER_LIMIT
    sbx = [sbx_to_regret(seed, limit) for seed in peers]
    peer_mean = float(np.mean([one["seconds"] for one in sbx]))
    for variant in ours.values():
        seconds = [one["seconds"] for one in variant["runs"]]
        arrived = all(one["reached"] for one in variant["runs"])
        variant["seconds"] = report.mean_interval(seconds)
        variant["all_reached"] = arrived
        variant["times_less"] = peer_mean / variant["seconds"]["mean"] if arrived else None
    what = "times less computing to regret 20 than SBX"
    return {
        "regret": REGRET,
        "ours": ours,
        "sbx": {
            "mean_seconds": peer_mean,
            "limit_steps": limit,
            "all_reached": all(one["reached"] for one in sbx),
            "runs": sbx,
        },
        "targets": [
            report.target(f"{what}, preset as it is", ours["default"]["times_less"], 20, 50, True),
            report.target(
                f"{what}, --planning.first-updates {lengths['short']}",
                ours["short"]["times_less"],
                20,
                50,
                True,
            ),
        ],
    }


def ours_to_regret(seed: int, total: int) -> dict:
    """Plan in chunks of a phase of `total` updates, as `training.plan` does, until it is good."""
    agent = DynaSAC("Pendulum-v1", seed=seed)
    clock, curve = ComputingClock(), []

    def plan(first: int) -> None:
        last = min(first + CHUNK, total)
        agent.state = jax.block_until_ready(
            training.plan_chunk(agent.task, agent.state, last, annealing=total)
        )

    for first in range(0, total, CHUNK):
        clock.time(lambda first=first: plan(first))
        curve.append(evaluation.OPTIMAL_RETURN["Pendulum-v1"] - agent.evaluate(100).mean_return)
        if curve[-1] <= REGRET:
            break
    print(f"  ours, seed {seed}, of {total}: {clock.seconds:.2f} s, {curve[-1]:.1f}", flush=True)
    return {
        "seed": seed,
        "reached": curve[-1] <= REGRET,
        "updates": min(CHUNK * len(curve), total),
        "seconds": clock.seconds,
        "seconds_compiling": clock.compiling,
        "regrets": curve,
    }


def sbx_to_regret(seed: int, limit: int) -> dict:
    """Train SBX's SAC on the real environment, in chunks of steps, until it is good."""
    import sbx

    from .seed_recipe import mean_return

    learner, clock, curve = sbx.SAC("MlpPolicy", "Pendulum-v1", seed=seed), ComputingClock(), []
    while len(curve) * PEER_CHUNK < limit:
        clock.time(lambda: learner.learn(PEER_CHUNK, reset_num_timesteps=not curve))
        curve.append(evaluation.OPTIMAL_RETURN["Pendulum-v1"] - mean_return(learner))
        if curve[-1] <= REGRET:
            break
    print(f"  SBX, seed {seed}: {clock.seconds:.1f} s, regret {curve[-1]:.1f}", flush=True)
    return {
        "seed": seed,
        "reached": curve[-1] <= REGRET,
        "real_steps": PEER_CHUNK * len(curve),
        "seconds": clock.seconds,
        "seconds_compiling": clock.compiling,
        "regrets": curve,
    }
