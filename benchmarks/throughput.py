"""Gradient updates a second on equal work, by turns in one run, and the machine's own limit.

Equal work: the losses of the SAC paper, batches of 256, the same networks. Ours makes 256 new
synthetic transitions for each update on the way; the peers draw from a buffer filled beforehand.
Everybody keeps its own number of threads, ours what the command line gives it; SB3 is measured with
a single one as well, which can be the faster, and the fastest of the peers counts.

The floating-point operations of an update are those of its matrix products, two for each weight
and row. With A weights in the actor and C in each of two critics:

    target             actor forward A, target critics forward 2C
    critics' loss      forward 2C, backward 4C (to weights and to inputs)
    actor's loss       actor forward A, backward 2A; critics forward 2C, backward to inputs 2C
    in all             4A + 12C a row; ours 5A + 12C: its synthetic actions are a forward pass more
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable
from unittest import mock

import gymnasium as gym
import jax

from dynasac import DynaSAC, planning, presets, training

from . import report

BATCH = 256
ROUNDS = 14
WIDTHS = {"2x64": (64, 64), "2x256": (256, 256)}
UPDATES = {"2x64": 1000, "2x256": 150}
"""updates in one measurement of ours and SBX, about a second's worth"""
SB3_SHARE = 5
"""SB3, which calls from Python for each operation, gets a fraction of them"""
OURS = ("ours", "ours_default_losses")
"""what is measured on one device as well"""
REST = 0.3
"""seconds between measurements, for threads of the one before to go to sleep"""
GOALS = {"2x64": (1.0, 1.25), "2x256": (1.0, 1.1)}

Work = Callable[[int], None]
"""Makes so many gradient updates and waits until they are done."""


def run(quick: bool) -> dict:
    import torch

    rounds = 2 if quick else ROUNDS
    found: dict = {
        "threads": {
            "cores": len(os.sched_getaffinity(0)),
            "torch": torch.get_num_threads(),
            "our_devices": jax.local_device_count(),
            "xla": os.environ.get("XLA_FLAGS", "its default: as many as there are cores"),
        },
        "batch": BATCH,
        "formula": "2 * batch * (4A + 12C); ours 2 * batch * (5A + 12C); module text of throughput",
        "widths": {},
    }
    targets = []
    for name, hidden in WIDTHS.items():
        updates = 20 if quick else UPDATES[name]
        measured = one_width(hidden, rounds, updates)
        found["widths"][name] = measured
        must, aim = GOALS[name]
        what = f"{name}: updates a second over the faster peer's"
        targets.append(report.target(what, measured["times_faster_peer"], must, aim, True))
    return {**found, "targets": targets}


def one_width(hidden: tuple[int, ...], rounds: int, updates: int) -> dict:
    """All learners and the bare matrix products by turns, `rounds` times."""
    paper = dataclasses.replace(presets.MODEL_FREE_SAC, hidden=hidden, batch_size=BATCH)
    own = dataclasses.replace(presets.DEFAULT.sac, hidden=hidden, batch_size=BATCH)
    works: dict[str, Work] = {
        "ours": our_work(paper, improved=False),
        "sb3": sb3_work(hidden),
        "sb3_one_thread": sb3_work(hidden, threads=1),
        "sbx": sbx_work(hidden),
        "ours_default_losses": our_work(own, improved=True),
    }
    for name in OURS:
        works[f"{name}_one_device"] = on_one_device(works[name])
    products = {"1024x1024x1024": products_of(1024, 1024), f"{BATCH}x64x64": products_of(BATCH, 64)}
    for work in works.values():
        work(5)  # compiles, except for SBX, which compiles for a number of updates
    works["sbx"](updates)
    measured: dict[str, tuple[Callable[[], object], float]] = {}
    """what to run, and how much of it that is: updates, or 1e9 operations"""
    for name, work in works.items():
        count = max(updates // SB3_SHARE, 1) if name.startswith("sb3") else updates
        measured[name] = functools.partial(work, count), count
    for name, (multiply, operations) in products.items():
        measured[name] = multiply, operations / 1e9
    names = list(measured)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        # each comes first once in a while: what was measured before leaves the machine warm or busy
        first = number % len(names)
        for name in names[first:] + names[:first]:
            run, amount = measured[name]
            rates[name].append(amount / seconds_of(run))
    spreads = {name: report.spread(values) for name, values in rates.items()}
    peak = max(max(rates[name]) for name in products)
    operations = update_operations(hidden)
    for name in works:
        own_operations = operations["ours" if name.startswith("ours") else "peers"]
        gigaflops = spreads[name]["median"] * own_operations / 1e9
        spreads[name]["gigaflops"] = gigaflops
        spreads[name]["share_of_peak"] = gigaflops / peak
    # by the round, since the machine's speed drifts
    peers = zip(rates["sb3"], rates["sb3_one_thread"], rates["sbx"], strict=True)
    ratios = [ours / max(peer) for ours, peer in zip(rates["ours"], peers, strict=True)]
    ratio = report.spread(ratios)
    spreading = {
        name: report.spread(
            [
                all_devices / one
                for all_devices, one in zip(rates[name], rates[f"{name}_one_device"], strict=True)
            ]
        )
        for name in OURS
    }
    print(f"  {hidden}: " + ", ".join(f"{n} {s['median']:.0f}" for n, s in spreads.items()))
    return {
        "updates_per_second": {name: spreads[name] for name in works},
        "matrix_product_gigaflops": {name: spreads[name] for name in products},
        "peak_gigaflops": peak,
        "operations_per_update": operations,
        "ratio_by_round": ratio,
        "times_faster_peer": ratio["median"],
        "times_one_device": spreading,
    }


def update_operations(hidden: tuple[int, ...], observation: int = 3, action: int = 1) -> dict:
    """Floating-point operations of one update by the formula above."""

    def weights(*sizes: int) -> int:
        return sum(a * b for a, b in itertools.pairwise(sizes))

    actor = weights(observation, *hidden, 2 * action)
    critic = weights(observation + action, *hidden, 1)
    peers = 4 * actor + 12 * critic
    return {"peers": 2 * BATCH * peers, "ours": 2 * BATCH * (peers + actor)}


def our_work(losses, improved: bool) -> Work:
    """Planning from the exact model, nothing real in the batches.

    `improved`: also what no peer has, the search for better actions, targets of many steps, and
    episodes in the model that show where the policy goes.
    """
    planned = presets.DEFAULT.planning
    if not improved:
        planned = dataclasses.replace(
            planned,
            improvement_states=0,
            value_expansion=1,
            starts=planning.StartWeights(space=1.0, visited=0.0),
        )
    config = dataclasses.replace(presets.DEFAULT, sac=losses, planning=planned)
    agent = DynaSAC("Pendulum-v1", config=config)

    def work(updates: int) -> None:
        counts = agent.state.counts._replace(phase_updates=0)
        state = agent.state._replace(counts=counts)
        for first in range(0, updates, training.CHUNK):
            last = min(first + training.CHUNK, updates)
            state = training.plan_chunk(agent.task, state, last, annealing=updates)
        agent.state = jax.block_until_ready(state)

    return work


def on_one_device(work: Work) -> Work:
    """The same where planning is not spread over devices."""

    def alone(updates: int) -> None:
        with mock.patch.object(planning, "devices_for", return_value=1):
            work(updates)

    return alone


def sb3_work(hidden: tuple[int, ...], threads: int | None = None) -> Work:
    import torch

    from .seed_recipe import make_learner

    learner = make_learner(gym.make("Pendulum-v1"), 0, list(hidden))
    fill(learner)
    default = torch.get_num_threads()

    def work(updates: int) -> None:
        torch.set_num_threads(threads or default)
        learner.train(gradient_steps=updates, batch_size=BATCH)
        torch.set_num_threads(default)

    return work


def sbx_work(hidden: tuple[int, ...]) -> Work:
    import sbx
    from stable_baselines3.common.logger import Logger

    learner = sbx.SAC(
        "MlpPolicy",
        "Pendulum-v1",
        buffer_size=10_000,
        seed=0,
        policy_kwargs={"net_arch": list(hidden)},
    )
    learner.set_logger(Logger(folder=None, output_formats=[]))
    fill(learner)

    def work(updates: int) -> None:
        learner.train(gradient_steps=updates, batch_size=BATCH)
        jax.block_until_ready(learner.policy.actor_state.params)

    return work


def fill(learner, rows: int = 10_000) -> None:
    """Random transitions of the real environment into the buffer of an SB3 or SBX agent."""
    env = gym.make("Pendulum-v1")
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(rows):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        learner.replay_buffer.add(observation, following, action / 2, reward, terminated, [{}])
        observation = env.reset()[0] if truncated else following


def products_of(rows: int, size: int) -> tuple[Callable[[], object], float]:
    """A chain of matrix products [rows, size] x [size, size], and its operations."""
    count = max(1, int(4e9 / (2 * rows * size * size)))
    weight = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
    start = jax.random.normal(jax.random.key(1), (rows, size))
    chain = jax.jit(lambda x, w: jax.lax.fori_loop(0, count, lambda _, x: x @ w, x))
    jax.block_until_ready(chain(start, weight))
    return lambda: jax.block_until_ready(chain(start, weight)), 2.0 * rows * size * size * count


def seconds_of(work: Callable[[], object]) -> float:
    time.sleep(REST)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
