"""`dynasac sweep`."""

import importlib.util
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import UsageError
from .start import configure, look_here

if TYPE_CHECKING:
    from .. import sweep as sweeps
    from ..sweep.pool import Pool

ROWS = 20
"""of the table of trials"""


@dataclass(frozen=True)
class Sweep:
    """Train with many settings and seeds: a grid, or what Optuna searches."""

    what: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE.toml|ENV")]
    """a TOML file that says all of it, or environments, MODULE:ID for your own: several are tasks
    of the same sweep"""
    settings: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="NAME=VALUE")
    ] = ()
    """a setting of `train`: NAME=VALUE, or NAME=VALUE,VALUE for a grid; layers as [64,64]. Once for
    each setting"""
    search: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=LOW:HIGH")
    ] = ()
    """a setting for Optuna to choose: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE. Once
    for each setting"""
    trials: int | None = None
    """of the search, each with every task and seed"""
    seeds: int | None = None
    """how many of each setting; 3 if neither this nor the file says it"""
    first_seed: int | None = None
    """100 if neither this nor the file says it"""
    model: str | None = None
    """as in train"""
    preset: Literal["default", "seed"] | None = None
    """as in train"""
    evaluation_episodes: int | None = None
    """as in train"""
    output: Path | None = None
    """directory of the sweep; runs/sweep-NAME if None. What is finished in it is not done again,
    what is not is gone on with"""
    jobs: int | None = None
    """trainings at a time, of one thread each; if None, the number of processors"""
    ray_address: str | None = None
    """a Ray cluster to train on instead of this machine, local for a Ray of its own, or
    HOST:PORT"""

    def run(self) -> int:
        configure()
        from ..sweep import spec, sweep

        asked = spec.parsed(self._content())
        if any(":" in name for name in (*asked.envs, asked.model)):
            look_here()
        pool, output = self._pool(), self.output or self._directory()

        def announced(output: Path) -> "Pool":
            workers = pool(output)  # the last that may not be possible
            print(_beforehand(asked, output), flush=True)
            return workers

        try:
            content = sweep(asked, output, announced, progress_bar=True)
        except KeyboardInterrupt:
            print("dynasac: stopped; what was learned is kept", file=sys.stderr)
            print("go on with the same command", file=sys.stderr)
            return 130
        return _print_result(asked, content, output)

    def _content(self) -> dict[str, Any]:
        """What the file and the flags say, the flags before the file."""
        from ..sweep import spec

        if not self.what:
            raise UsageError("name a TOML file, or at least one environment")
        if self._file and len(self.what) > 1:
            raise UsageError(f"{self.what[1]}: beside a TOML file there is nothing else to name")
        content = spec.read_toml(self._file) if self._file else {"envs": list(self.what)}
        said = {
            name: value
            for name in ("seeds", "first_seed", "model", "preset", "evaluation_episodes")
            if (value := getattr(self, name)) is not None
        }
        beside = {
            name: value for name, value in content.items() if name.replace("-", "_") not in said
        }
        return spec.from_flags({**beside, **said}, self.settings, self.search, self.trials)

    @property
    def _file(self) -> Path | None:
        return Path(self.what[0]) if self.what[0].endswith(".toml") else None

    def _directory(self) -> Path:
        from ..sweep.spec import task_name

        name = self._file.stem if self._file else "-".join(map(task_name, self.what))
        return Path("runs") / f"sweep-{name}"

    def _pool(self) -> Callable[[Path], "Pool"]:
        """What makes the workers."""
        if self.ray_address is None:
            from ..sweep import LocalPool

            return lambda output: LocalPool(output, self.jobs)
        if self.jobs is not None:
            raise UsageError("--jobs is for this machine: with --ray-address the cluster decides")
        if importlib.util.find_spec("ray") is None:
            raise UsageError("--ray-address needs Ray: pip install 'dynasac[scale]'")
        from ..sweep.ray_pool import RayPool

        address = self.ray_address
        return lambda output: RayPool(address, output)


def _beforehand(asked: "sweeps.Sweep", output: Path) -> str:
    """What is to come, in a line."""
    parts = [_counted(asked.count, "setting"), _counted(asked.seeds, "seed")]
    if len(asked.envs) > 1:
        parts.insert(1, _counted(len(asked.envs), "task"))
    return f"{' × '.join(parts)}: {_counted(asked.trainings, 'training')} in {output}/"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _print_result(asked: "sweeps.Sweep", content: dict[str, Any], output: Path) -> int:
    """The table and what stands below it; returns the exit code."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..sweep import table as results
    from ..sweep import title

    console = Console(highlight=False)
    trials = results.ranked(content)
    grid = Table("trial", "settings", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("mean return" if len(asked.envs) == 1 else "score", justify="right")
    grid.add_column("± seeds", justify="right")
    grid.add_column("trainings")
    shape = "{:,.1f}" if len(asked.envs) == 1 else "{:.3f}"
    for trial in trials[:ROWS]:
        grid.add_row(
            str(trial["number"]),
            title(trial["settings"], asked.fixed),
            *("–" if trial[n] is None else shape.format(trial[n]) for n in ("value", "spread")),
            _what_happened(trial["runs"]),
        )
    console.print(grid)
    if len(trials) > ROWS:
        print(f"and {len(trials) - ROWS} more in {output}/results.csv")
    failed = [each for trial in trials for each in trial["runs"] if each["status"] == "failed"]
    if failed:
        print(f"{_counted(len(failed), 'training')} failed:")
        for each in failed[:ROWS]:
            print(f"  {each['directory']} {each['happened'][-1]}")
        if not asked.search:
            print("asked for again, they are tried again")
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if complete:
        _print_best(asked, complete)
    print(f"everything is in {output}/: sweep.json, results.csv and a run directory each")
    print(f"next:\n  {shlex.join(['dynasac', 'report', str(output)])}")
    return 1 if failed else 0


def _what_happened(trainings: list[dict[str, Any]]) -> str:
    """How many trainings of a trial became what, and how many of them not at once."""
    counts: dict[str, int] = {}
    for each in trainings:
        counts[each["status"]] = counts.get(each["status"], 0) + 1
    resumed = sum(each["attempts"] > 1 for each in trainings)
    parts = [f"{number} {status}" for status, number in counts.items()]
    return ", ".join([*parts, *([f"{resumed} resumed"] if resumed else [])])


def _print_best(asked: "sweeps.Sweep", complete: list[dict[str, Any]]) -> None:
    best, fresh = complete[0], asked.first_seed + asked.seeds
    if len(complete) > 1:
        print(
            f"the best of {len(complete)} was chosen on these seeds, so its value is optimistic: "
            "train it with others"
        )
    print(f"the best settings, trial {best['number']}, with a seed that is new to them:")
    for env in asked.envs:
        print(f"  {shlex.join(_command(asked, env, best['settings'], fresh))}")


def _command(asked: "sweeps.Sweep", env: str, settings: dict[str, Any], seed: int) -> list[str]:
    """That trains with settings of the sweep."""
    from ..sweep.spec import option

    words = ["dynasac", "train", env]
    words += ["--model", asked.model] if asked.model != "auto" else []
    words += ["--preset", asked.preset] if asked.preset != "default" else []
    words += ["--seed", str(seed)]
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{option(name)}", *map(str, values)]
    return words
