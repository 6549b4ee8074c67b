"""Sweeps on this machine: the time of a worker that goes into no training, and two against one.

The same trainings, `dynasac sweep Pendulum-v1 --seeds 12`, by one worker and by two, by turns. What
is compiled was compiled before. A run goes from its config.json to its summary.json; the rest of a
worker's time is overhead: starting Python and JAX, once for each worker, making the agent, and
waiting to be given the next training. Waiting for the last run of the other worker is not.
"""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from dynasac.checkpoint import read_json
from dynasac.sweep import LocalPool, Sweep, sweep

from . import report

RUNS = 12
REPETITIONS = 2
SECONDS_OF_A_RUN = 30.0
"""that the overhead is held against"""


def run(quick: bool) -> dict:
    runs, repetitions = (4, 1) if quick else (RUNS, REPETITIONS)
    fixed = {"planning.first_updates": 200} if quick else {}
    asked = Sweep(("Pendulum-v1",), seeds=runs, fixed=fixed)
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        jax.config.update("jax_compilation_cache_dir", f"{place}/compiled")
        _swept(Sweep(("Pendulum-v1",), seeds=1, fixed=fixed), Path(place) / "before", 1)
        for index in range(repetitions):
            for workers in (2, 1) if index % 2 == 0 else (1, 2):
                output = Path(place) / f"{workers}-{index}"
                found[workers].append(_swept(asked, output, workers))
                print(f"  {workers}: {found[workers][-1]['seconds']:.1f} s", flush=True)
    one, two = (report.spread([each["seconds"] for each in found[workers]]) for workers in (1, 2))
    overhead = report.spread([each["overhead_seconds"] for each in found[2]])
    share = 100 * overhead["median"] / SECONDS_OF_A_RUN
    return {
        "runs": runs,
        "one_worker": {"seconds": one, "sweeps": found[1]},
        "two_workers": {"seconds": two, "sweeps": found[2]},
        "overhead_seconds_a_run": overhead,
        "peak_memory_gb_of_a_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6,
        "targets": [
            report.target("overhead of a run at 2 workers, % of 30 s", share, 2, 1, higher=False),
            report.target(
                "two workers on the work of one, times as fast",
                one["median"] / two["median"],
                1.7,
                1.9,
                higher=True,
            ),
        ],
    }


def _swept(asked: Sweep, output: Path, workers: int) -> dict[str, Any]:
    """Seconds of a sweep, and what of them went into no run, for each run; what of that was before
    the first run of each worker, is told apart too."""
    began = time.time()
    content = sweep(asked, output, lambda place: LocalPool(place, workers))
    ended = time.time()
    directories = [
        output / each["directory"] for trial in content["trials"] for each in trial["runs"]
    ]
    spans = [
        ((path / "config.json").stat().st_mtime, (path / "summary.json").stat().st_mtime)
        for path in directories
    ]
    starting = sum(start - began for start in sorted(start for start, _ in spans)[:workers])
    last = sorted(end for _, end in spans)[-workers:]
    waited = sum(last[-1] - end for end in last)
    inside = [end - start for start, end in spans]
    return {
        "seconds": ended - began,
        "starting_seconds": starting / len(spans),
        "seconds_of_each_run": [round(each, 2) for each in inside],
        "overhead_seconds": (workers * (ended - began) - sum(inside) - waited) / len(spans),
        "mean_returns": [
            read_json(path / "summary.json")["evaluation"]["mean_return"] for path in directories
        ],
    }
