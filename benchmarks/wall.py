"""Wall time and memory of one cold training at the command line, and the seed's recipe beside it.

Cold: a process of its own with nothing compiled beforehand. Ours is all that one command does:
imports, compiling, training, evaluation and files. Of the recipe, imports and training are counted
and its evaluation is not, which is to its advantage. It runs with torch's own number of threads and
with a single one; the faster counts.

This module imports little: a process's peak memory, as the system counts it, is never less than
what its parent held at its start.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import report

REPETITIONS = 3
RECIPE_EPISODES = 20


def run(quick: bool) -> dict:
    extra = ["--planning.first-updates", "100"] if quick else []
    repetitions = 1 if quick else REPETITIONS
    episodes = 1 if quick else RECIPE_EPISODES
    ours, warm, recipes = [], [], []
    for index in range(repetitions):
        with tempfile.TemporaryDirectory() as place:
            ours.append(ours_once(Path(place), "cold", index, extra))
            if index == 0:
                warm.append(ours_once(Path(place), "warm", index, extra))
        if index == 0:  # between those of ours, so that both meet the same machine
            recipes = [recipe_once(episodes, []), recipe_once(episodes, ["--threads", "1"])]
    seconds = report.spread([one["seconds"] for one in ours])
    memory = report.spread([one["peak_memory_gb"] for one in ours])
    faster = min(recipe["seconds"] for recipe in recipes) / seconds["median"]
    return {
        "ours_cold": {"seconds": seconds, "peak_memory_gb": memory, "runs": ours},
        "ours_compiled_before": warm,
        "sb3_seed_recipe": recipes,
        "targets": [
            report.target("cold training, times faster than the recipe", faster, 6, 12, True),
            report.target("peak memory of training, GB", memory["max"], 1.2, 0.7, higher=False),
        ],
    }


def ours_once(place: Path, name: str, seed: int, extra: list[str]) -> dict:
    """`dynasac train Pendulum-v1 --real-episodes 0` with its cache and its output in `place`."""
    arguments = ["train", "Pendulum-v1", "--real-episodes", "0", "--seed", str(seed)]
    output = place / name
    command = [str(Path(sys.executable).with_name("dynasac")), *arguments, *extra]
    found = timed([*command, "--output", str(output)], {"XDG_CACHE_HOME": str(place / "cache")})
    summary = json.loads((output / "summary.json").read_text())
    print(f"  ours, {name}: {found['seconds']:.1f} s, {found['peak_memory_gb']:.2f} GB", flush=True)
    return {
        "command": " ".join(["dynasac", *arguments, *extra]),
        "seconds": found["seconds"],
        "peak_memory_gb": found["peak_memory_gb"],
        "seconds_inside": summary["wall_seconds"],
        "compile_seconds": summary["compile_seconds"],
        "gradient_updates": summary["gradient_updates"],
        "mean_return": summary["evaluation"]["mean_return"],
    }


def recipe_once(episodes: int, extra: list[str]) -> dict:
    """The seed's recipe as a process, from its start to the end of its training."""
    command = [sys.executable, "-m", "benchmarks.seed_recipe", "--episodes", str(episodes)]
    found = timed([*command, *extra], {})
    said = json.loads(found["output"].splitlines()[-1])
    seconds = said["trained_at"] - found["started_at"]
    print(f"  the recipe, threads {said['threads']}: {seconds:.1f} s", flush=True)
    return {
        "real_episodes": episodes,
        "threads": said["threads"],
        "seconds": seconds,
        "mean_return": said["mean_return"],
        "peak_memory_gb": found["peak_memory_gb"],
    }


def timed(command: list[str], environment: dict[str, str]) -> dict:
    """Run a command and say how long it took and how much memory it held at most."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started_at = time.time()
        process = subprocess.Popen(
            command, stdout=output, stderr=errors, env={**os.environ, **environment}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.time() - started_at
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip() or "nothing on standard error").splitlines()[-1]
            raise RuntimeError(f"{Path(command[0]).name} ended with {process.returncode}: {last}")
        output.seek(0)
        return {
            "started_at": started_at,
            "seconds": seconds,
            "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9,  # in KiB on Linux
            "output": output.read(),
        }
