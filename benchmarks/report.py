"""What a result says beside its numbers: machine, versions, date, targets; and the table of all."""

import contextlib
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

PACKAGES = (
    "dynasac",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "numpy",
    "scipy",
    "gymnasium",
    "stable-baselines3",
    "sbx-rl",
    "torch",
    "ray",
)


def target(what: str, value: float | None, must: float | None, aim: float, higher: bool) -> dict:
    """A number that was to be reached; `higher` says which direction is the better one.

    Without a `must`, it is hoped for alone.
    """

    def reaches(bound: float | None) -> bool:
        if bound is None:
            return False
        return value is not None and (value >= bound if higher else value <= bound)

    reached = "aim" if reaches(aim) else "must" if reaches(must) else "no"
    sign = "≥" if higher else "≤"
    return {
        "what": what,
        "value": value,
        "must": "–" if must is None else f"{sign} {must:g}",
        "aim": f"{sign} {aim:g}",
        "reached": reached,
    }


def mean_interval(values: Sequence[float]) -> dict:
    """Mean, standard deviation and 95% bootstrap interval of the mean, beside the raw values."""
    import numpy as np
    import scipy.stats

    interval: list[float] | None = None
    if len(values) > 1 and np.ptp(values) > 0:
        found = scipy.stats.bootstrap(
            (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        interval = [float(found.low), float(found.high)]
    return {
        "raw": [float(value) for value in values],
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "interval_95": interval,
    }


def spread(values: Sequence[float]) -> dict:
    """Least, median and greatest of repeated measurements, beside the raw values."""
    import numpy as np

    raw = [float(value) for value in values]
    return {"min": min(raw), "median": float(np.median(raw)), "max": max(raw), "raw": raw}


def measured(part: str, title: str, quick: bool) -> dict[str, Any]:
    """Run a part and put beside its numbers what is needed to read them."""
    result: dict[str, Any] = {
        "part": part,
        "title": title,
        "command": f"python -m benchmarks {part}" + (" --quick" if quick else ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine(),
        "versions": versions(),
        "error": None,
        "targets": [],
    }
    started = time.perf_counter()
    try:
        result.update(_work(part)(quick))
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def _work(part: str) -> Callable[[bool], dict]:
    """What a part runs: `run` of its module, or the function of its name in `fidelity`."""
    try:
        return importlib.import_module(f".{part}", __package__).run
    except ModuleNotFoundError:
        return getattr(importlib.import_module(".fidelity", __package__), part)


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, and how busy the machine was already."""
    # not at the top: it imports JAX, for which a part first chooses the platform
    from dynasac.processes import processor, processors

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": processor(),
        "cores": processors(),
        "memory_gib": round(memory, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def folder(quick: bool) -> Path:
    """Quick results lie apart, so that they are never taken for measurements."""
    return RESULTS / "quick" if quick else RESULTS


def write(result: dict[str, Any]) -> None:
    where = folder(result["quick"])
    where.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (where / f"{result['part']}.json").write_text(text + "\n")


def write_table(quick: bool) -> None:
    """README.md of the results, made from all JSON files that are there."""
    from .__main__ import PARTS

    files = [folder(quick) / f"{part}.json" for part in PARTS]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    text = [
        "# Results",
        "",
        "Made by `python -m benchmarks` from the JSON files beside it, which hold the raw numbers.",
        "" if not quick else "\n**Tiny sizes: these numbers mean nothing.**\n",
        "| | measured | must | aim | reached |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        text.append(f"| **{result['title']}** (`{result['part']}`) | | | | |")
        if result["error"]:
            text.append(f"| failed: {result['error'].splitlines()[0]} | | | | no |")
        for row in result["targets"]:
            cells = (row["what"], figures(row["value"]), row["must"], row["aim"], row["reached"])
            text.append("| " + " | ".join(cells) + " |")
    text += [
        "",
        "| part | date | seconds | machine | load before |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        box = result["machine"]
        where = f"{box['cpu']}, {box['cores']} cores, {box['memory_gib']} GiB"
        cells = (result["part"], result["date"], result["seconds"], where, box["load_before"])
        text.append("| " + " | ".join(map(str, cells)) + " |")
    if results:
        versions = {name: v for result in results for name, v in result["versions"].items()}
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        text += ["", f"Versions: {names}."]
    (folder(quick) / "README.md").write_text("\n".join(text) + "\n")


def lines(result: dict[str, Any]) -> list[str]:
    """A result for people who watch."""
    rows = [
        f"{row['what']}: {figures(row['value'])} (must {row['must']}, aim {row['aim']}: "
        f"{row['reached']})"
        for row in result["targets"]
    ]
    return rows + ([f"failed: {result['error']}"] if result["error"] else [])


def figures(value: float | None) -> str:
    """Three or four figures; thousands whole."""
    if value is None:
        return "not reached"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
