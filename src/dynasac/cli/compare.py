"""`dynasac compare`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..errors import UsageError
from .start import configure


@dataclass(frozen=True)
class Compare:
    """Compare agents with several seeds, equal evaluation and, but for --preset seed, equal real
    steps."""

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
    """mean return that counts as solved; if None, near the optimum or what the environment says,
    both of 100 episodes"""
    output: Path | None = None
    """directory of the comparison; runs/compare-ENV if None. What it holds is not done again, and
    stays part of the result"""
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
    name = env.rpartition(":")[2].replace("/", "-")
    return Path("runs") / f"compare-{name}{'' if preset == 'default' else f'-{preset}'}"


def _print_result(content: dict[str, Any]) -> int:
    """The table and what stands below it; returns how many trainings failed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..comparison.statistics import FEWEST_SEEDS

    console = Console(highlight=False)
    threshold, agents = content["threshold"], content["agents"]
    runs = [(name, run) for name, found in agents.items() for run in found["runs"]]
    failed = [(name, run) for name, run in runs if run["error"] is not None]
    made = {run["steps"][-1] for _, run in runs if run["error"] is None}
    alike = f" after {made.pop():,} real steps" if len(made) == 1 else ""
    counts = {len(found["runs"]) for found in agents.values()}
    seeds = f"{'' if len(counts) == 1 else 'up to '}{max(counts)} seed"
    console.print(
        f"{content['env_id']}, {seeds}{'' if max(counts) == 1 else 's'}: mean return of "
        f"{content['evaluation']['episodes']} fixed episodes{alike}",
        markup=False,
    )
    intervals = [found["iqm"]["low"] is not None for found in agents.values() if found["iqm"]]
    table = Table("agent", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("IQM \\[95% interval]" if any(intervals) else "IQM", justify="right")
    if not alike:
        table.add_column("steps", justify="right")
    solved = "to threshold" if threshold is None else f"to {threshold:g}"
    solved = f"steps {solved}" if alike else solved
    table.add_column(solved, justify="right")
    table.add_column("updates", justify="right")
    table.add_column("seconds", justify="right")
    for name, found in agents.items():
        table.add_row(
            name,
            "–" if found["iqm"] is None else _interval(found["iqm"], _shape(found["iqm"])),
            *([] if alike else [_number(found["steps"]["median"])]),
            "–" if threshold is None else _reached(found["steps_to_threshold"]),
            _number(found["gradient_updates"]["median"]),
            _number(found["seconds"]["median"]),
        )
    console.print(table)
    if not all(intervals):
        print(f"fewer than {FEWEST_SEEDS} seeds: too few for an interval")
    share = agents.get("sac-matched", {}).get("updates_to_dynasac", {}).get("median")
    if share is not None:
        print(f"sac-matched made {share:.2f} times as many updates as dynasac")
    for each in content["improvement"]:
        probability = _interval({**each, "value": each["probability"]}, "{:.2f}")
        console.print(f"probability that {_pair(each, alike)}: {probability}", markup=False)
    if failed:
        print(f"{len(failed)} of {len(runs)} trainings failed:")
        for name, run in failed:
            print(f"  {name} seed {run['seed']}: {run['error']}")
        print("asked for again, they are tried again; the numbers are of the others")
    return len(failed)


def _pair(each: dict[str, Any], alike: str) -> str:
    """Who is better than whom, and after how many real steps if the table does not say it."""
    ours, theirs = each["better_steps"], each["than_steps"]
    if alike:
        return f"{each['better']} is better than {each['than']}"
    if ours == theirs:
        return f"{each['better']} is better than {each['than']}, both after {ours:,.0f} real steps"
    return (
        f"{each['better']} after {ours:,.0f} real steps is better than {each['than']} "
        f"after {theirs:,.0f}"
    )


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
