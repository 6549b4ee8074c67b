"""How many steps a target has by default: four systems whose physics are known, on seeds apart.

Two of them bound their observations, as the tasks of `defaults` do, and two do not: the pendulum
without a limit of speed, with friction that its model leaves out and two real episodes to find it,
and the cart of examples/, planned for in the rough model. Each training has one thread.
"""

import dataclasses
import itertools
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from dynasac import DynaSAC, presets, processes

from . import report, worlds
from .fidelity import shortened

STEPS = (1, 4, 5, 8)
SEEDS = range(130, 136)
EXAMPLES = Path(__file__).parents[1] / "examples"
SYSTEMS = {
    "Pendulum-v1": 0,
    "MountainCarContinuous-v0": 0,
    "UnlimitedPendulum-v0": 2,
    "cart:Cart-v0": 0,
}
"""their real episodes"""


def run(quick: bool) -> dict:
    seeds = SEEDS[:1] if quick else SEEDS
    asked = [(name, steps, seed, quick) for name in SYSTEMS for steps in STEPS for seed in seeds]
    sys.path.append(str(EXAMPLES))
    with processes.environment() as variables:
        os.environ.update(variables)  # of the processes that are begun now
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes.processors(), mp_context=spawned) as pool:
            returns = list(pool.map(_return, asked))
    left = iter(returns)
    found: dict[str, dict[str, Any]] = {}
    for name in SYSTEMS:
        found[name] = {}
        for steps in STEPS:
            values = list(itertools.islice(left, len(seeds)))
            found[name][str(steps)] = {**report.mean_interval(values), "worst": min(values)}
        shown = ", ".join(
            f"{steps}: {each['mean']:.1f} ({each['worst']:.1f})"
            for steps, each in found[name].items()
        )
        print(f"  {name}: {shown}", flush=True)
    return {"seeds": [seeds[0], seeds[-1]], "returns": found, "targets": []}


def _return(asked: tuple[str, int, int, bool]) -> float:
    """What the final policy earns, in a process of its own."""
    name, steps, seed, quick = asked
    models = {
        "UnlimitedPendulum-v0": worlds.UnlimitedPendulum(),
        "cart:Cart-v0": f"{EXAMPLES / 'cart.py'}:Cart",
    }
    planning = dataclasses.replace(presets.DEFAULT.planning, value_expansion=steps)
    config = dataclasses.replace(presets.DEFAULT, planning=planning, real_episodes=SYSTEMS[name])
    config = shortened(config) if quick else config
    agent = DynaSAC(name, models.get(name, "auto"), config, seed)
    value = agent.learn().evaluate(10 if quick else 100).mean_return
    print(f"  {name}, {steps} steps, seed {seed}: {value:.1f}", flush=True)
    return value
