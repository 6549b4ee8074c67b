"""Synthetic transitions a second, policy included, against the loop of the seed document.

Both begin where episodes of the pendulum do. Ours goes on for a number of steps from each start, or
takes a single one as the seed does. The seed's loop resets, asks the policy, steps and writes to
the replay, one transition after another; the networks are those of the default preset, 2x64, and
those of the seed, 2x256.
"""

import dataclasses
import time

import equinox as eqx
import gymnasium as gym
import jax
from gymnasium.envs.classic_control import PendulumEnv

from dynasac import DynaSAC, planning, presets
from dynasac.planning import StartWeights

from . import report, seed_recipe

ROUNDS = 5
SHAPES = {"100 steps": (10_000, 100), "single steps": (500_000, 1)}
"""starts and steps from each"""
WIDTHS = {"2x64": (64, 64), "2x256": (256, 256)}
LOOP = 5000
"""transitions of the seed's loop in one measurement"""


def run(quick: bool) -> dict:
    rounds, shrink = (2, 100) if quick else (ROUNDS, 1)
    ours = {
        (width, shape): our_generator(hidden, SHAPES[shape][0] // shrink, SHAPES[shape][1])
        for width, hidden in WIDTHS.items()
        for shape in SHAPES
    }
    loops = {width: seed_loop(hidden, LOOP // shrink) for width, hidden in WIDTHS.items()}
    for generate in [*ours.values(), *loops.values()]:
        generate()  # compiles
    rates: dict = {name: [] for name in [*ours, *loops]}
    for _ in range(rounds):
        for name, generate in [*ours.items(), *loops.items()]:
            started = time.perf_counter()
            made = generate()
            rates[name].append(made / (time.perf_counter() - started))
    spreads = {name: report.spread(values) for name, values in rates.items()}
    # the seed's loop counts with the smaller network, which is faster than its own
    loop = max(spreads[width]["median"] for width in WIDTHS)
    best = spreads["2x64", "100 steps"]["median"]
    what = "synthetic transitions, times the seed's loop"
    return {
        "ours": {f"{width}, {shape}": spreads[width, shape] for width, shape in ours},
        "seed_loop": {width: spreads[width] for width in WIDTHS},
        "times_the_loop": {
            f"{width}, {shape}": spreads[width, shape]["median"] / spreads[width]["median"]
            for width, shape in ours
        },
        "targets": [
            report.target(f"{what} ({best:,.0f} a second)", best / loop, 300, 1000, True),
        ],
    }


def our_generator(hidden: tuple[int, ...], count: int, steps: int):
    """A function that makes `count` rollouts in the exact model and says how many transitions."""
    config = dataclasses.replace(
        presets.DEFAULT, sac=dataclasses.replace(presets.DEFAULT.sac, hidden=hidden)
    )
    agent = DynaSAC("Pendulum-v1", config=config)
    weights = StartWeights(replay=0.0, reset=1.0, space=0.0)

    @eqx.filter_jit
    def generate(actor, model, replay, spaces, key):
        start_key, rollout_key = jax.random.split(key)
        starts = planning.start_observations(
            model, replay, weights, spaces.observation, spaces.observation, count, start_key
        )
        trust = dataclasses.replace(planning.full_trust(config.planning), horizon=steps)
        return planning.rollout(model, actor, starts, steps, 0.0, spaces, trust, rollout_key)

    key = jax.random.key(0)

    def once() -> int:
        nonlocal key
        key, now = jax.random.split(key)
        made = generate(agent.state.sac.actor, agent.model, agent.state.replay, agent.spaces, now)
        _, happened = jax.block_until_ready(made)
        return int(happened.sum())

    return once


def seed_loop(hidden: tuple[int, ...], count: int):
    """The same for the seed's way, on one thread of torch: for single rows more are no faster."""
    import torch

    torch.set_num_threads(1)
    learner = seed_recipe.make_learner(gym.make("Pendulum-v1"), 0, list(hidden))
    physics = PendulumEnv(g=10.0)

    def once() -> int:
        seed_recipe.synthesise(learner, physics, count)
        return count

    return once
