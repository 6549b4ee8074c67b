"""Several learners in one process against one: Pendulum-v1, the default settings, networks of 2x64.

Cold: `dynasac train Pendulum-v1 --real-episodes 0` as a process of its own with nothing compiled
before, with one seed and with eight, on one core and on all; everything counts, from imports to
evaluations. Warm: planning alone, compiled before, in turns and in one call, against one learner's.

This module imports little at its top, as `wall` does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import report

SEEDS = 8
UPDATES = 512
"""of each learner, in one warm measurement"""
ROUNDS = 5


def run(quick: bool) -> dict:
    seeds = 2 if quick else SEEDS
    cores = sorted(os.sched_getaffinity(0))
    found = {}
    for name, used in {"one core": cores[:1], "all cores": cores}.items():
        found[name] = {
            "cores": len(used),
            "cold": cold(seeds, used, quick),
            "warm": warm_apart(used, quick),
        }
    alone = found["one core"]
    ways = alone["warm"]["seeds"][str(seeds)]
    times = {
        "a cold training": alone["cold"]["times_one_seed"],
        "computing in turns": ways["turns"]["median"],
        "computing in one call": ways["one_call"]["median"],
    }
    targets = [
        report.target(f"{seeds} seeds on one core: {what}, times one seed's", each, 6, 6, False)
        for what, each in times.items()
    ]
    return {"seeds": seeds, **found, "targets": targets}


def cold(seeds: int, cores: list[int], quick: bool) -> dict:
    """Seconds of a training with one seed and with several, by turns."""
    one, several = [], []
    for _ in range(1 if quick else 2):
        one.append(train_once([], cores, quick))
        several.append(train_once(["--seeds", str(seeds)], cores, quick))
    fastest = [min(run["seconds"] for run in runs) for runs in (one, several)]
    return {"one": one, "several": several, "times_one_seed": fastest[1] / fastest[0]}


def train_once(extra: list[str], cores: list[int], quick: bool) -> dict:
    from .wall import timed

    small = ["--planning.first-updates", "100", "--evaluation-episodes", "2"] if quick else []
    words = ["train", "Pendulum-v1", "--real-episodes", "0", *extra, *small]
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as place:
        command = [str(Path(sys.executable).with_name("dynasac")), *words]
        environment = {"XDG_CACHE_HOME": f"{place}/cache", "NPROC": str(len(cores))}
        os.sched_setaffinity(0, cores)  # children have it too
        try:
            measured = timed([*command, "--output", f"{place}/run"], environment)
        finally:
            os.sched_setaffinity(0, before)
        summaries = [json.loads(p.read_text()) for p in sorted(Path(place, "run").rglob("summ*"))]
    print(f"  {len(cores)} cores, {' '.join(words)}: {measured['seconds']:.1f} s", flush=True)
    return {
        "command": " ".join(["dynasac", *words]),
        "seconds": measured["seconds"],
        "peak_memory_gb": measured["peak_memory_gb"],
        "compile_seconds": sum(summary["compile_seconds"] for summary in summaries),
        "mean_returns": [summary["evaluation"]["mean_return"] for summary in summaries],
    }


def warm_apart(cores: list[int], quick: bool) -> dict:
    """`warm` in a process of its own that has these cores: JAX counts them when it starts."""
    words = [sys.executable, "-m", "benchmarks.seeds", *map(str, cores), *["--quick"] * quick]
    found = subprocess.run(
        words, env={**os.environ, "NPROC": str(len(cores))}, capture_output=True, text=True
    )
    if found.returncode:
        raise RuntimeError(found.stderr.strip().splitlines()[-1])
    measured = json.loads(found.stdout.splitlines()[-1])
    for count, ways in measured["seeds"].items():
        said = ", ".join(f"{way} {ways[way]['median']:.2f}" for way in ("turns", "one_call"))
        print(f"  {len(cores)} cores, {count} seeds, times one: {said}", flush=True)
    return measured


def warm(quick: bool) -> dict:
    """Planning by so many learners, each way, as multiples of one learner's seconds by rounds."""
    import threading

    import jax

    from dynasac import DynaSAC, training
    from dynasac.together import OneCall, Turns

    counts, updates = ([1, 2], 64) if quick else ([1, 2, 4, SEEDS], UPDATES)
    agents = [DynaSAC("Pendulum-v1", seed=seed) for seed in range(counts[-1])]

    def plan(agent: DynaSAC, compute: Callable) -> None:
        task, state = agent.task._replace(compute=compute), agent.state
        for first in range(0, updates, training.CHUNK):
            last = min(first + training.CHUNK, updates)
            state = training.plan_chunk(task, state, last, annealing=updates)
        jax.block_until_ready(state.sac)

    def seconds(count: int, compute: Callable) -> float:
        started = time.perf_counter()
        threads = [threading.Thread(target=plan, args=(agent, compute)) for agent in agents[:count]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    found = {}
    for count in counts:
        ways = {"turns": Turns(), "one_call": OneCall(count)}
        for compute in (training.at_once, *ways.values()):
            seconds(1 if compute is training.at_once else count, compute)  # compiles
        ratios: dict[str, list[float]] = {way: [] for way in ways}
        each = []
        for _ in range(2 if quick else ROUNDS):
            for way, compute in ways.items():
                one = seconds(1, training.at_once)  # beside each: the machine's speed drifts
                ratios[way].append(seconds(count, compute) / one)
                each.append(one)
        found[str(count)] = {
            **{way: report.spread(values) for way, values in ratios.items()},
            "seconds_of_one": report.spread(each),
        }
    return {"updates": updates, "seeds": found}


if __name__ == "__main__":
    os.sched_setaffinity(0, [int(word) for word in sys.argv[1:] if word.isdecimal()])
    print(json.dumps(warm("--quick" in sys.argv)))
