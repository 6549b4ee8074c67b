"""What many runs cost, from measured parts, and what that says of more of them than were tried.

Measured: what a worker takes before its first run; a run's updates, compiling apart, alone and
beside another; and what the driver takes for each run, with workers that do nothing, so
that nothing but the driver is timed. From these `predicted` is a worker's time and the driver's,
whichever is longer. It is held against whole sweeps at one and two workers, of other lengths than
those that it was made from, and then asked about 10,000 runs on 1,000 cores.
"""

import collections
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dynasac.checkpoint import read_json
from dynasac.sweep import LocalPool, Sweep, sweep
from dynasac.sweep.pool import Event
from dynasac.sweep.work import Job

from . import report

RUNS = 8
UPDATES = (1000, 3000)
CHECKED_UPDATES = 2000
DRIVEN = (250, 1000, 4000)
"""runs of workers that do nothing"""
SEEDS = 10
FAR = 10_000
CORES = 1_000


class Costs(NamedTuple):
    """Seconds, as they were measured."""

    start: float
    """of a worker before its first run, with everything compiled before"""
    compile: float
    """more than that, where nothing was"""
    run: float
    """of a run without updates: its environment, evaluation and files"""
    update: float
    driver: float
    """of the driver for each run"""


def predicted(costs: Costs, runs: int, workers: int, updates: int, compiled: bool) -> float:
    """Seconds of a sweep: those of the worker with most runs, or the driver's."""
    start = costs.start + (0.0 if compiled else costs.compile)
    busy = start + -(-runs // workers) * (costs.run + updates * costs.update)
    return max(busy, start + runs * costs.driver)


class Idle:
    """Workers that do nothing: every training is done as soon as it is its turn."""

    def __init__(self, slots: int, summary: dict[str, Any]):
        self.slots = slots
        self._summary, self._submitted = summary, collections.deque[str]()

    def submit(self, job: Job) -> None:
        self._submitted.append(job.name)

    def stop(self, name: str) -> None:
        del name

    def events(self, seconds: float) -> list[Event]:
        """Of one training at a time, as where they take long."""
        del seconds
        name = self._submitted.popleft()
        row = {"real_episodes": 0, "eval_mean_return": 0.0}
        return [Event(name, "row", row), Event(name, "done", self._summary)]

    def close(self) -> None:
        pass


def run(quick: bool) -> dict:
    runs, few, many, checked = (2, 50, 150, 100) if quick else (RUNS, *UPDATES, CHECKED_UPDATES)
    driven = (20, 40) if quick else DRIVEN
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(place / "compiled"))
        cold = _swept(place / "cold", 1, 1, few)
        warm = _swept(place / "warm", 1, 1, few)
        parts = {
            workers: [_swept(place / f"{workers}-{n}", runs, workers, n) for n in (few, many)]
            for workers in (1, 2)
        }
        checks = {
            workers: _swept(place / f"{workers}-c", runs, workers, checked) for workers in (1, 2)
        }
        driver = [_driven(place / f"driven-{n}", n, cold["summary"]) for n in driven]
    costs = {
        workers: _costs(cold, warm, parts[workers], (few, many), driver[-1]["seconds_a_run"])
        for workers in (1, 2)
    }
    held = {
        workers: {
            "measured": checks[workers]["seconds"],
            "predicted": predicted(costs[workers], runs, workers, checked, compiled=True),
        }
        for workers in (1, 2)
    }
    errors = [abs(one["predicted"] / one["measured"] - 1) for one in held.values()]
    far = costs[2]
    return {
        "costs": {str(workers): one._asdict() for workers, one in costs.items()},
        "driver": driver,
        "checks": {str(workers): one for workers, one in held.items()},
        "runs_on_cores": {
            "runs": FAR,
            "cores": CORES,
            "updates": UPDATES[-1],
            "predicted_seconds": predicted(far, FAR, CORES, UPDATES[-1], compiled=False),
            "of_a_core_alone": predicted(costs[1], FAR, 1, UPDATES[-1], compiled=False),
            "driver_seconds": FAR * far.driver,
            "runs_a_second": CORES / (far.run + UPDATES[-1] * far.update),
        },
        "targets": [
            report.target(
                "largest error of the predicted time at 1 and 2 workers, %",
                100 * max(errors),
                20,
                10,
                higher=False,
            )
        ],
    }


def _swept(output: Path, runs: int, workers: int, updates: int) -> dict[str, Any]:
    asked = Sweep(("Pendulum-v1",), seeds=runs, fixed={"planning.first_updates": updates})
    began = time.time()
    content = sweep(asked, output, lambda place: LocalPool(place, workers))
    seconds = time.time() - began
    paths = [output / each["directory"] for each in content["trials"][0]["runs"]]
    first = min((path / "config.json").stat().st_mtime for path in paths)
    spans = [
        (path / "summary.json").stat().st_mtime - (path / "config.json").stat().st_mtime
        for path in paths
    ]
    print(f"  {runs} runs of {updates} updates by {workers}: {seconds:.1f} s", flush=True)
    return {
        "seconds": seconds,
        "starting": first - began,
        "first": spans[0],
        "later": spans[workers:],
        "summary": read_json(paths[0] / "summary.json"),
    }


def _costs(cold, warm, parts, updates: tuple[int, int], driver: float) -> Costs:
    short, long = (statistics.median(one["later"] or [one["first"]]) for one in parts)
    least, most = updates
    update = max(0.0, (long - short) / (most - least))
    run = short - least * update
    # what a worker does once, in its first run too, is the rest of that
    start = warm["starting"] + warm["first"] - run - least * update
    return Costs(max(0.0, start), cold["seconds"] - warm["seconds"], run, update, driver)


def _driven(output: Path, runs: int, summary: dict[str, Any]) -> dict[str, Any]:
    rates = tuple(1e-3 + 1e-7 * index for index in range(runs // SEEDS))
    asked = Sweep(("Pendulum-v1",), seeds=SEEDS, grid={"sac.learning_rate": rates})
    began = time.process_time()
    sweep(asked, output, lambda place: Idle(CORES, summary))
    seconds = time.process_time() - began
    print(f"  the driver, {runs:,} runs: {1e3 * seconds / runs:.1f} ms each", flush=True)
    return {"runs": runs, "seconds_a_run": seconds / runs}
