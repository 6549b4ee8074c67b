"""Real episodes from several slow environments at once: wall time, and planning meanwhile.

Pendulum-v1 that takes 10 ms a step, as a machine would, planned on its equations. Time counts from
the first real episode to the end of the last phase of planning; starting Ray and the rigs lies
before it, and is told apart. Of planning, it is told how much of it went on while a rig was busy.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from . import report

PAUSE = 0.01
"""seconds that a step takes at least"""
STEPS = 200
"""of an episode"""


class Slow(PendulumEnv):
    """Writes down when it was asked for each step, in seconds of the machine's clock."""

    def __init__(self, log: str):
        super().__init__()
        self._log = Path(log) / f"{id(self)}-{time.monotonic_ns()}"

    def step(self, action):
        with self._log.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        time.sleep(PAUSE)
        return super().step(action)


gym.register("SlowPendulum-v0", "benchmarks.rigs:Slow", max_episode_steps=STEPS)


def run(quick: bool) -> dict:
    episodes, updates = (3, 50) if quick else (12, 1000)
    runs = [once(rigs, episodes, updates) for rigs in (0, 1, 3)]
    one, three = runs[1], runs[2]
    faster = one["seconds"] / three["seconds"]
    return {
        "pause_seconds": PAUSE,
        "runs": runs,
        "targets": [
            report.target("three rigs, times faster than one", faster, 1.5, 2.5, higher=True),
            report.target(
                "planning while a rig moves, share of its time", three["overlap"], 0.5, 0.9, True
            ),
        ],
    }


def once(rigs: int, episodes: int, updates: int) -> dict:
    """Train until so many real episodes, with so many rigs, or without for 0."""
    from dynasac import Config, DynaSAC, Pendulum
    from dynasac.agent import Silent
    from dynasac.rigs import Rigs

    class Clock(Silent):
        """When each phase began."""

        def __init__(self):
            self.told: list[tuple[float, str]] = []

        def progress(self, state, phase):
            self.told.append((time.monotonic(), phase))

        def episode(self, state):
            self.told.append((time.monotonic(), "over"))

    planning = dataclasses.replace(Config().planning, first_updates=updates, updates=updates)
    config = dataclasses.replace(Config(), planning=planning, adapt="none")
    with tempfile.TemporaryDirectory() as log:
        env, clock, begun = gym.make("SlowPendulum-v0", log=log), Clock(), time.monotonic()
        agent = DynaSAC(env, Pendulum(), config)
        agent.learn(
            real_episodes=episodes, observer=clock, rigs=Rigs(rigs) if rigs else None
        ).close()
        moved = sorted(each for file in Path(log).iterdir() for each in episodes_of(file))
    first = moved[0][0]
    planned = intervals(clock.told, first)
    seconds = sum(until - since for since, until in planned)
    end = clock.told[-1][0]
    found = {
        "rigs": rigs,
        "real_episodes": agent.state.counts.real_episodes,
        "real_steps": agent.state.counts.real_steps,
        "phases": agent.state.counts.planned,
        "seconds": end - first,
        "seconds_before": first - begun,
        "planning_seconds": seconds,
        "overlap": sum(covered(moved, each) for each in planned) / seconds,
    }
    print(f"  {rigs} rigs: {json.dumps(found)}", flush=True)
    return found


def episodes_of(file: Path) -> list[tuple[float, float]]:
    """From where to where each episode of a rig went; all have as many steps."""
    steps = [float(line) for line in file.read_text().splitlines()]
    return [
        (steps[k], steps[min(k + STEPS, len(steps)) - 1] + PAUSE)
        for k in range(0, len(steps), STEPS)
    ]


def intervals(told: list[tuple[float, str]], since: float) -> list[tuple[float, float]]:
    """From where to where each phase of planning went that began after `since`."""
    found: list[tuple[float, float]] = []
    begun = None
    for moment, phase in told:
        if phase == "plan" and begun is None:
            begun = moment
        elif phase != "plan" and begun is not None:
            found.append((begun, moment))
            begun = None
    return [each for each in found if each[0] > since]


def covered(episodes: list[tuple[float, float]], interval: tuple[float, float]) -> float:
    """Seconds of an interval in which an episode was under way, of some sorted by their begin."""
    since, until = interval
    reached, total = since, 0.0
    for begin, end in episodes:
        begin, end = max(begin, reached), min(end, until)
        if end > begin:
            total, reached = total + end - begin, end
    return total
