"""What run and comparison directories hold, whatever state they are in.

Files are somebody else's: each value is looked at before it is used, what is missing is said, and
nothing that a file names is imported or run.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import presets, runs
from ..checkpoint import read_json
from ..errors import UsageError

Json = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """One run directory, finished or not."""

    directory: Path
    name: str
    asked: Json
    """config.json; empty if it is missing or damaged"""
    rows: tuple[Json, ...]
    """metrics.csv; see `number` for its cells"""
    summary: Json
    """summary.json; empty until training is over"""
    missing: tuple[str, ...]
    """sentences: what is not there, and how to get it"""

    @property
    def env_id(self) -> str:
        return text(self.asked.get("env_id") or self.summary.get("env_id")) or "unknown environment"

    @property
    def baseline(self) -> str:
        """The name of an agent of stable-baselines3, that `dynasac compare` trained; else ""."""
        return text(self.asked.get("agent"))

    @property
    def evaluation(self) -> Json:
        return mapping(self.summary.get("evaluation"))

    def column(self, name: str) -> list[float | None]:
        """A column of metrics.csv; None where a cell, or the whole column, is empty."""
        return [number(row.get(name)) for row in self.rows]

    def last(self, name: str) -> float | None:
        """The newest number in a column, or what the summary says."""
        known = [value for value in self.column(name) if value is not None]
        return known[-1] if known else number(self.summary.get(name))


@dataclass(frozen=True)
class ComparisonData:
    """One directory that `dynasac compare` wrote."""

    directory: Path
    name: str
    content: Json
    """comparison.json"""
    missing: tuple[str, ...] = ()

    @property
    def env_id(self) -> str:
        return text(self.content.get("env_id")) or "unknown environment"

    @property
    def agents(self) -> dict[str, Json]:
        return {name: mapping(agent) for name, agent in mapping(self.content.get("agents")).items()}


def expanded(directory: Path) -> list[tuple[Path, str]]:
    """The run directories of a sweep, with their names in it; anything else is itself.

    Raises:
        UsageError: it is a sweep in which nothing was begun.
    """
    if (directory / "config.json").exists() or not (directory / "sweep.json").exists():
        return [(directory, "")]
    found = (*directory.glob("trial-*/seed-*"), *directory.glob("trial-*/*/seed-*"))
    began = sorted(path for path in found if (path / "config.json").exists())
    if not began:
        raise UsageError(f"{directory} is a sweep in which nothing has begun yet")
    return [(path, str(path.relative_to(directory))) for path in began]


def gather(directory: Path, name: str = "") -> RunData | ComparisonData:
    """Read a directory, which is to be called `name`, or what it is called.

    Raises:
        UsageError: it is neither a run nor a comparison, or a comparison that cannot be read.
    """
    name = name or directory.resolve().name or str(directory)
    if (directory / "comparison.json").exists():
        content = read_json(directory / "comparison.json")
        if not mapping(content.get("agents")):
            raise UsageError(f"{directory / 'comparison.json'} tells of no agents")
        return ComparisonData(directory, name, content)
    found = [(directory / file).exists() for file in ("config.json", "metrics.csv", "summary.json")]
    if not any(found):
        raise UsageError(
            f"{directory} is neither a run nor a comparison: it has no config.json and no "
            "comparison.json"
        )
    return _run(directory, name)


def _run(directory: Path, name: str) -> RunData:
    missing = []

    def read(file: str, without: str) -> Json:
        try:
            return read_json(directory / file)
        except UsageError as error:
            there = (directory / file).exists()
            missing.append(f"{error if there else f'There is no {file}'}. {without}")
            return {}

    asked = read("config.json", "What was asked for is not known.")
    rows: tuple[Json, ...] = ()
    try:
        rows = tuple(runs.read_metrics(directory))
    except UsageError:
        missing.append("metrics.csv is damaged: there are no curves.")
    if not rows and not (directory / "metrics.csv").exists():
        missing.append("Nothing has been measured yet: metrics.csv begins with the first phase.")
    if rows and not (directory / "summary.json").exists():
        missing.append(
            "Training is still under way or was stopped: summary.json is written at its end. "
            + (
                "The same `dynasac compare` does it again"
                if text(asked.get("agent"))
                else "`dynasac train --resume --output DIR` goes on with a run that was stopped"
            )
            + "; make the page again then."
        )
        summary = {}
    else:
        summary = read("summary.json", "It is written when training ends.") if rows else {}
    return RunData(directory, name, asked, rows, summary, tuple(missing))


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, next to the preset it started from."""

    preset: str
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """name → (asked for, the preset's), where they differ"""
    all: dict[str, Any] = field(default_factory=dict)


def settings(asked: Json) -> Settings:
    """The settings of config.json by the names of the command line, with those that differ."""
    preset, model = text(asked.get("preset")), text(asked.get("model"))
    ours = _named(mapping(asked.get("settings")))
    if preset not in presets.PRESETS:
        return Settings(preset, all=ours)
    theirs = _named(runs.plain(presets.preset(preset, model)))
    changed = {
        name: (value, theirs[name])
        for name, value in ours.items()
        # what the preset leaves open was filled in by the environment, not asked for
        if theirs.get(name) is not None and runs.listed(theirs[name]) != runs.listed(value)
    }
    return Settings(preset, changed, ours)


def _named(content: Json) -> Json:
    """Settings by the names of the command line."""
    return {name.replace("_", "-"): value for name, value in runs.flat(content).items()}


def number(value: Any) -> float | None:
    """A finite number from JSON or from a cell of a table; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(value: Any) -> list[float]:
    """The finite numbers of a JSON list."""
    listed = value if isinstance(value, list) else []
    return [found for item in listed if (found := number(item)) is not None]


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Json]:
    """The objects of a JSON list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
