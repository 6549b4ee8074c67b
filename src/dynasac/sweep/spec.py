"""What a sweep is asked for: from a TOML file or flags, checked before anything runs.

    env = "Pendulum-v1"        # or envs = ["Pendulum-v1", "MountainCarContinuous-v0"]
    seeds = 3

    [settings]                 # a value is fixed, a list is a grid
    "sac.learning-rate" = [1e-3, 3e-3]

    [search]                   # in place of a grid: ranges and choices for Optuna
    trials = 40
    "planning.exploration" = {low = 0.1, high = 0.9}

Settings have their names of the command line, or those of Python.
"""

import dataclasses
import difflib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .. import evaluation, presets
from ..errors import UsageError
from .work import Job, config_of

Settings = dict[str, Any]
"""by their dotted names in Python, as JSON holds them"""

MOST_TRIALS = 10_000
LONGEST_FILE = 1_000_000
"""bytes"""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: int | float
    high: int | float
    log: bool = False
    """whether their logarithms are spread evenly"""
    whole: bool = False


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """Settings × seeds × tasks."""

    envs: tuple[str, ...]
    """Gymnasium environment ids, or MODULE:ID: the tasks"""
    model: str = "auto"
    """as on the command line"""
    preset: str = "default"
    seeds: int = 3
    """how many for each setting and task"""
    first_seed: int = 100
    evaluation_episodes: int = 100
    fixed: Settings = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """all combinations are tried"""
    search: dict[str, Range | Choices] = field(default_factory=dict)
    """in place of a grid: Optuna chooses"""
    trials: int = 0
    """of the search, in all"""
    solved: dict[str, float] = field(default_factory=dict)
    """of several tasks, by `task_name`: the mean return that counts as 1"""

    @property
    def count(self) -> int:
        """How many trials there are."""
        return self.trials if self.search else math.prod(map(len, self.grid.values()))

    @property
    def trainings(self) -> int:
        """How many trainings there are, if nothing is pruned."""
        return self.count * len(self.envs) * self.seeds


def task_name(env: str) -> str:
    """Of a task: what its directories are called."""
    return env.rpartition(":")[2].replace("/", "-")


def combinations(sweep: Sweep) -> Iterator[Settings]:
    """The settings of each trial of a grid; the last setting changes fastest."""
    for values in itertools.product(*sweep.grid.values()):
        yield {**sweep.fixed, **dict(zip(sweep.grid, values, strict=True))}


def jobs(sweep: Sweep, number: int, settings: Settings) -> list[Job]:
    """The trainings of a trial, all tasks of a seed before the next seed."""
    return [
        _job(sweep, number, settings, env, seed)
        for seed in range(sweep.first_seed, sweep.first_seed + sweep.seeds)
        for env in sweep.envs
    ]


def _job(sweep: Sweep, number: int, settings: Settings, env: str, seed: int) -> Job:
    task = [task_name(env)] if len(sweep.envs) > 1 else []
    return Job(
        name="/".join([f"trial-{number:04d}", *task, f"seed-{seed}"]),
        env=env,
        seed=seed,
        settings=settings,
        model=sweep.model,
        preset=sweep.preset,
        evaluation_episodes=sweep.evaluation_episodes,
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a file for `parsed`.

    Raises:
        UsageError: it is missing or no TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise ValueError(f"it has more than {LONGEST_FILE:,} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError are such
        raise UsageError(f"{path} is no TOML: {error}") from None


KEYS = {
    "env": str,
    "envs": list,
    "model": str,
    "preset": str,
    "seeds": int,
    "first_seed": int,
    "evaluation_episodes": int,
    "settings": dict,
    "search": dict,
    "solved": dict,
}
"""of a file, and what stands behind them"""


def parsed(content: Mapping[str, Any]) -> Sweep:
    """A sweep from what a TOML file holds, or flags that were brought into that form.

    Raises:
        UsageError: a name is not known, a value is none of its setting's, or there is nothing to
            do.
    """
    known = {name.replace("-", "_"): value for name, value in content.items()}
    for name, value in known.items():
        if name not in KEYS:
            raise UsageError(f"there is no {name!r} in a sweep{_near(name, KEYS)}")
        if type(value) is not KEYS[name]:
            raise UsageError(f"{name} = {value!r}: not {KEYS[name].__name__}")
    if ("env" in known) == ("envs" in known):
        raise UsageError("name the task: env = ID, or several: envs = [ID, ID]")
    plain = {
        name: known[name]
        for name in ("model", "preset", "seeds", "first_seed", "evaluation_episodes")
        if name in known
    }
    envs = known.get("envs", [known.get("env")])
    if not envs or not all(isinstance(env, str) and task_name(env) for env in envs):
        raise UsageError(f"envs = {envs!r}: each is the id of an environment")
    sweep = Sweep(tuple(envs), **plain)
    _check_numbers(sweep)
    search = dict(known.get("search", {}))
    trials = search.pop("trials", None)
    sorts = _sorts(sweep)
    settings = {
        _name(name, sorts): value for name, value in _leaves(known.get("settings", {})).items()
    }
    ranges = {_name(name, sorts): value for name, value in _leaves(search).items()}
    listed = {name: _values(name, value, sorts[name]) for name, value in settings.items()}
    sweep = dataclasses.replace(
        sweep,
        fixed={name: values[0] for name, (values, several) in listed.items() if not several},
        grid={name: values for name, (values, several) in listed.items() if several},
        search={name: _dimension(name, value, sorts[name]) for name, value in ranges.items()},
        trials=_trials(trials, bool(ranges)),
        solved=_solved(sweep, known.get("solved", {})),
    )
    _check_settings(sweep)
    return sweep


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else f": there are {', '.join(names)}"


def _check_numbers(sweep: Sweep) -> None:
    names = [task_name(env) for env in sweep.envs]
    if len(set(names)) < len(names):
        raise UsageError(f"envs = {list(sweep.envs)!r}: name each once")
    if sweep.preset not in presets.PRESETS:
        raise UsageError(f"preset {sweep.preset!r}: there are {', '.join(presets.PRESETS)}")
    for name, value, least, most in (
        ("seeds", sweep.seeds, 1, MOST_TRIALS),
        ("first-seed", sweep.first_seed, 0, 2**31),
        ("evaluation-episodes", sweep.evaluation_episodes, 1, evaluation.MOST_EPISODES),
    ):
        if not least <= value <= most:
            raise UsageError(f"{name} {value}: from {least} to {most:,}")


@dataclass(frozen=True)
class _Sort:
    """What a setting may be."""

    default: Any
    open: bool
    """whether None is a value"""


def _sorts(sweep: Sweep) -> dict[str, _Sort]:
    """All settings by their dotted names in Python."""

    def within(config: Any, prefix: str) -> Iterator[tuple[str, _Sort]]:
        hints = get_type_hints(type(config))
        for each in dataclasses.fields(config):
            value, name = getattr(config, each.name), prefix + each.name
            if dataclasses.is_dataclass(value):
                yield from within(value, f"{name}.")
            else:
                yield name, _Sort(value, type(None) in get_args(hints[each.name]))

    return dict(within(presets.preset(sweep.preset, sweep.model), ""))


def option(name: str) -> str:
    """A setting's name on the command line."""
    return name.replace("_", "-")


def _name(name: str, sorts: Mapping[str, _Sort]) -> str:
    python = name.removeprefix("--").replace("-", "_")
    if python not in sorts:
        last = [each for each in sorts if each.rpartition(".")[2] == python]
        hint = f"; did you mean {option(last[0])}?" if last else None
        hint = hint or _near(option(python), list(map(option, sorts))).partition(": there are")[0]
        more = "" if hint else "; `dynasac train --help` lists them all"
        raise UsageError(f"there is no setting {name!r}{hint}{more}")
    return python


def _leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Under dotted names, however they were nested; what describes a range is none of the nests."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        nest = isinstance(value, dict) and not set(value) & {"low", "high", "log", "choices"}
        found.update(_leaves(value, f"{prefix}{name}.") if nest else {f"{prefix}{name}": value})
    return found


def _value(name: str, value: Any, sort: _Sort) -> Any:
    """As JSON holds it."""
    if sort.open and value == "none":
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{option(name)} {value}: no finite number")
    if isinstance(sort.default, float) and type(value) is int:
        return float(value)
    return value


def _values(name: str, value: Any, sort: _Sort) -> tuple[tuple[Any, ...], bool]:
    """One or several values of a setting, and whether they are several."""
    listed = isinstance(value, list)
    if isinstance(sort.default, tuple):
        listed = listed and any(isinstance(item, list) for item in value)
    if not listed:
        return (_value(name, value, sort),), False
    values = tuple(_value(name, item, sort) for item in value)
    if not values or len(set(map(str, values))) < len(values):
        raise UsageError(f"{option(name)} = {value!r}: a grid has each of its values once")
    return values, True


def _dimension(name: str, value: Any, sort: _Sort) -> Range | Choices:
    told = f"{option(name)} = {value!r}"
    like = "write {low = 0.1, high = 0.9}, with log = true if you like, or {choices = [1, 2]}"
    if not isinstance(value, dict):
        raise UsageError(f"{told}: {like}")
    if set(value) == {"choices"} and isinstance(value["choices"], list):
        values, several = _values(name, value["choices"], sort)
        if not several or len(values) < 2:
            raise UsageError(f"{told}: at least two choices")
        return Choices(values)
    if not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        raise UsageError(f"{told}: {like}")
    low, high, log = value["low"], value["high"], value.get("log", False)
    number = sort.default is None or type(sort.default) in (int, float)
    whole = type(sort.default) is int
    if not number or any(
        type(end) not in ((int,) if whole else (int, float)) for end in (low, high)
    ):
        kind = "whole numbers" if whole else "numbers" if number else "choices"
        raise UsageError(f"{told}: {option(name)} takes {kind}")
    if type(log) is not bool or not -math.inf < low < high < math.inf or (log and low <= 0):
        raise UsageError(f"{told}: low is less than high, and more than 0 with log = true")
    return Range(low, high, log, True) if whole else Range(float(low), float(high), log)


def _trials(trials: Any, searched: bool) -> int:
    if searched and (type(trials) is not int or not 1 <= trials <= MOST_TRIALS):
        said = "how many trials?" if trials is None else f"trials {trials!r}:"
        raise UsageError(f"a search: {said} 1 to {MOST_TRIALS:,}")
    if trials is not None and not searched:
        raise UsageError("trials are of a search, and nothing is searched; a grid is tried whole")
    return trials or 0


def _solved(sweep: Sweep, content: Mapping[str, Any]) -> dict[str, float]:
    names = [task_name(env) for env in sweep.envs]
    for name, value in content.items():
        if name not in names:
            raise UsageError(f"solved is told of {name!r}, which is no task{_near(name, names)}")
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UsageError(f"solved: {name} = {value!r}: a mean return")
    return {name: float(value) for name, value in content.items()}


def _check_settings(sweep: Sweep) -> None:
    """Build the settings of every trial of a grid; of a search, those at the ends."""
    if sweep.grid and sweep.search:
        raise UsageError(
            f"{', '.join(map(option, sweep.grid))}: with a search, write several values under it, "
            "as {choices = [1, 2]}"
        )
    twice = set(sweep.fixed) & set(sweep.search)
    if twice:
        raise UsageError(f"{', '.join(map(option, sorted(twice)))}: fixed, or searched, not both")
    if sweep.count > MOST_TRIALS:
        raise UsageError(f"{sweep.count:,} settings: {MOST_TRIALS:,} at most")
    ends = [
        {**sweep.fixed, name: value}
        for name, one in sweep.search.items()
        for value in (one.values if isinstance(one, Choices) else (one.low, one.high))
    ]
    for settings in [sweep.fixed, *ends] if sweep.search else combinations(sweep):
        try:
            config_of(_job(sweep, 0, settings, sweep.envs[0], sweep.first_seed))
        except UsageError as error:
            changed = {name: value for name, value in settings.items() if name not in sweep.fixed}
            raise UsageError(f"{error}{f' (with {told(changed)})' if changed else ''}") from None


def told(settings: Mapping[str, Any]) -> str:
    """Settings in a few words."""
    return ", ".join(f"{option(name)} {written(value)}" for name, value in settings.items())


def written(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def from_flags(
    content: Mapping[str, Any],
    settings: Sequence[str],
    search: Sequence[str],
    trials: int | None,
) -> dict[str, Any]:
    """The content of a file, with what was said on the command line beside or instead.

    Arguments:
        settings: NAME=VALUE, or NAME=VALUE,VALUE for a grid; layers as [64,64].
        search: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE.

    Raises:
        UsageError: one is not of that form.
    """
    found = dict(content)
    for name in ("settings", "search"):
        if not isinstance(found.get(name, {}), dict):
            raise UsageError(f"{name} must be a table, [{name}], not {found[name]!r}")
    if settings:
        beside = {name: _one_or_several(text) for name, text in map(_split, settings)}
        found["settings"] = {**found.get("settings", {}), **beside}
    if search or trials is not None:
        beside = {name: _range_or_choices(text) for name, text in map(_split, search)}
        more = {} if trials is None else {"trials": trials}
        found["search"] = {**found.get("search", {}), **beside, **more}
    return found


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise UsageError(f"{text!r}: write NAME=VALUE, as sac.learning-rate=1e-3,3e-3")
    return name.strip(), value.strip()


def _one_or_several(text: str) -> Any:
    items = [_item(item) for item in re.split(r",(?![^\[]*\])", text)]
    return items[0] if len(items) == 1 else items


def _range_or_choices(text: str) -> dict[str, Any]:
    low, colon, rest = text.partition(":")
    if not colon:
        values = _one_or_several(text)
        return {"choices": values if isinstance(values, list) else [values]}
    high, colon, log = rest.partition(":")
    if colon and log != "log":
        raise UsageError(f"{text!r}: write LOW:HIGH, or LOW:HIGH:log")
    return {"low": _item(low), "high": _item(high), "log": bool(colon)}


def _item(text: str) -> Any:
    """A number, a truth, a list; anything else is a word."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return "none" if text == "None" else text.strip()


def as_asked(sweep: Sweep) -> dict[str, Any]:
    """As asked.json holds it."""
    return json.loads(json.dumps(dataclasses.asdict(sweep)))
