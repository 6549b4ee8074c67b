"""`dynasac compare`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..errors import UsageError
from .start import configure


@dataclass(frozen=True)
class Compare:
    """Compare agents with equal real steps, equal evaluation and several seeds."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """Gymnasium environment id, or MODULE:ID"""
    agents: tuple[Literal["dynasac", "sac", "sac-matched", "sb3-sac", "sb3-ppo"], ...] | None = None
    """dynasac: with a model; sac: without; sac-matched: without, with as many updates; sb3-sac,
    sb3-ppo: stable-baselines3's, tuned. All but sac-matched if None"""
    seeds: int = 5
    """how many, from 0"""
    real_steps: int | None = None
    """of each agent; if None, 25 full episodes"""
    model: str = "auto"
    """of the agent dynasac, as in train"""
    preset: Literal["default", "seed"] = "default"
    """seed: the seed document's own comparison, with its own numbers of real steps"""
    threshold: float | None = None
    """mean return that counts as solved; if None, near the optimum or what the environment says"""
    output: Path | None = None
    """directory of the comparison; runs/compare-ENV if None. What it holds is not done again"""
    jobs: int | None = None
    """trainings at a time, of one thread each; if None, the number of processors"""
    evaluation_episodes: int = 100
    """episodes of each evaluation, episode k from reset(seed=10000+k)"""

    def run(self) -> int:
        configure()
        from ..comparison import Design, compare, picture

        design = Design(
            self.env,
            self.agents,
            self.seeds,
            self.real_steps,
            self.model,
            self.preset,
            self.threshold,
            self.evaluation_episodes,
        )
        output = self.output or _directory(self.env, self.preset)
        try:
            content = compare(design, output, self.jobs, progress_bar=True)
        except KeyboardInterrupt:
            print("dynasac: stopped; trainings that had ended are kept", file=sys.stderr)
            print("go on with the same command", file=sys.stderr)
            return 130
        files = [output / "comparison.json"]
        try:
            picture.draw(content, output / "curves.png")
            files.append(output / "curves.png")
        except UsageError as error:
            print(f"dynasac: {error}", file=sys.stderr)
        failed = _print_result(content)
        print(f"everything is in {output}/: {', '.join(file.name for file in files)}")
        print(f"next:\n  dynasac report {output}")
        return 1 if failed else 0


def _directory(env: str, preset: str) -> Path:
    name = env.replace("/", "-").replace(":", "-")
    return Path("runs") / f"compare-{name}{'' if preset == 'default' else f'-{preset}'}"


def _print_result(content: dict[str, Any]) -> int:
    """The table and what stands below it; returns how many trainings failed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    threshold = content["threshold"]
    seeds, budgets = len(content["seeds"]), set(content["real_steps"].values())
    alike = f" after {budgets.pop():,} real steps" if len(budgets) == 1 else ""
    console.print(
        f"{content['env_id']}, {seeds} seed{'' if seeds == 1 else 's'}: mean return of "
        f"{content['evaluation']['episodes']} fixed episodes{alike}",
        markup=False,
    )
    table = Table("agent", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("IQM \\[95% interval]", justify="right")
    if not alike:
        table.add_column("steps", justify="right")
    solved = "to threshold" if threshold is None else f"to {threshold:g}"
    solved = f"steps {solved}" if alike else solved
    table.add_column(solved, justify="right")
    table.add_column("updates", justify="right")
    table.add_column("seconds", justify="right")
    for name, found in content["agents"].items():
        taken = [run["steps"][-1] for run in found["runs"] if run["error"] is None]
        updates = _median([run["gradient_updates"] for run in found["runs"]])
        table.add_row(
            name,
            "–" if found["iqm"] is None else _interval(found["iqm"], _shape(found["iqm"])),
            *([] if alike else [_number(_median(taken))]),
            "–" if threshold is None else _reached(found["steps_to_threshold"]),
            _number(updates),
            _number(found["seconds"]["median"]),
        )
    console.print(table)
    for each in content["improvement"]:
        console.print(
            f"probability that {each['better']} is better than {each['than']}: "
            f"{_interval({**each, 'value': each['probability']}, '{:.2f}')}",
            markup=False,
        )
    failed = [
        (name, run)
        for name, found in content["agents"].items()
        for run in found["runs"]
        if run["error"] is not None
    ]
    if failed:
        print(f"{len(failed)} of {len(content['agents']) * seeds} trainings failed:")
        for name, run in failed:
            print(f"  {name} seed {run['seed']}: {run['error']}")
        print("the same command tries them again; the numbers are of the others")
    return len(failed)


def _interval(found: dict[str, Any], shape: str) -> str:
    value = shape.format(found["value"])
    if found["low"] is None:
        return value
    return f"{value} [{shape.format(found['low'])}, {shape.format(found['high'])}]"


def _shape(found: dict[str, Any]) -> str:
    """Large numbers whole, so that they fit."""
    return "{:,.1f}" if abs(found["value"]) < 1000 else "{:,.0f}"


def _reached(found: dict[str, Any]) -> str:
    return f"{_number(found['median'])} ({found['reached']}/{found['runs']})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _median(values: Sequence[int | None]) -> float | None:
    import statistics

    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
