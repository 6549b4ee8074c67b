"""`dynasac train --seeds N`: one training for each of several seeds, all of them side by side."""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import evaluation, runs
from ..checkpoint import read_json
from ..errors import UsageError
from .train import Train, free_directory

if TYPE_CHECKING:
    from ..agent import DynaSAC
    from ..models import DynamicsModel
    from ..runs import Run


MOST_SEEDS = 1000
"""of one process; `dynasac sweep` has as many as one likes"""


class _Seed(NamedTuple):
    agent: "DynaSAC"
    run: "Run"


def train(asked: Train) -> int:
    """Begin, or go on with, the training of each seed; returns the exit code.

    What one of them fails by is told in the end.
    """
    from .. import recording, together

    if asked.seeds is not None and not 1 <= asked.seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds {asked.seeds}: from 1 to {MOST_SEEDS:,}")
    with contextlib.ExitStack() as stack:
        begun = _resumed if asked.resume else _new
        output, seeds, errors = begun(asked, stack)
        left = []
        for seed in seeds:
            if asked.resume and recording.is_finished(seed.agent, seed.run.directory):
                seed.run.close()
            else:
                left.append(seed)
        if seeds and not left and not errors:
            print(f"nothing is left to do: all {len(seeds)} seeds in {output} are complete")
            return 0
        stopped = False
        try:
            outcomes = together.record_together(
                [seed.agent for seed in left],
                [seed.run for seed in left],
                asked.evaluation_episodes,
                progress_bar=True,
            )
        except KeyboardInterrupt:
            outcomes, stopped = [], True
        for seed, outcome in zip(left, outcomes, strict=False):
            if isinstance(outcome, UsageError):
                errors[seed.run.directory] = outcome
        if stopped or any(isinstance(one, recording.Interrupted) for one in outcomes):
            print("dynasac: stopped", *_told(errors), file=sys.stderr, sep="\n")
            print(f"what was learned is in {output}", file=sys.stderr)
            print(f"go on with:  {asked.go_on(output)}", file=sys.stderr)
            return 130
        complete = [seed for seed in seeds if seed.run.directory not in errors]
        if complete:
            best = _print_table(complete)
            print(f"everything is in {output}/")
            code = ["--env", asked.env] if ":" in asked.env else []
            code += ["--model", asked.model] if ":" in asked.model else []
            page = shlex.join(["--output", str(output / "report.html"), *code])
            print("next:", f"dynasac report {shlex.quote(str(output))}/seed-* {page}", sep="\n  ")
            print("or, with the best of them:", end="\n  ")
            print(*asked.next_commands(best.agent, best.run.directory), sep="\n  ")
    if errors:
        print(*_told(errors), file=sys.stderr, sep="\n")
        print(f"try again with:  {asked.go_on(output)}", file=sys.stderr)
    return 1 if errors else 0


def _new(
    asked: Train, stack: contextlib.ExitStack
) -> tuple[Path, list[_Seed], dict[Path, UsageError]]:
    """Where the runs are, and a new one for each seed; nothing is written if any cannot begin."""
    from .. import memory

    count = asked.seeds or 1
    agents, said = [], []
    for seed in range(asked.seed, asked.seed + count):
        made = _model_of(agents)
        agent, sentences = dataclasses.replace(asked, seed=seed).learner(made)
        stack.callback(agent.close)
        if not agents:
            memory.check_together([agent.memory] * count, memory.available())
        agents.append(agent)
        said += sentences
    print(*dict.fromkeys(said), sep="\n", end="\n" if said else "")
    output = asked.output or free_directory(agents[0].env_id)
    stack.enter_context(runs.locked(output, runs.BUSY))
    if any(output.iterdir()):
        raise runs.taken(output)
    seeds = []
    for agent in agents:
        directory = runs.seed_directory(output, agent.seed)
        run = dataclasses.replace(asked, seed=agent.seed).claimed(agent, directory, keep=True)
        stack.callback(run.close)
        seeds.append(_Seed(agent, run))
    return output, seeds, {}


def _resumed(
    asked: Train, stack: contextlib.ExitStack
) -> tuple[Path, list[_Seed], dict[Path, UsageError]]:
    """The runs that there are, and by what those cannot be gone on with that are damaged."""
    output = asked.output
    assert output is not None  # as `Train.run` sees to
    directories = runs.seed_directories(output)
    if asked.seeds not in (None, len(directories)):
        held = f"{len(directories)} seeds" if directories else "a single run"
        raise UsageError(f"{output} holds {held}, not {asked.seeds} seeds: leave --seeds out")
    asked.refuse_changes(output)
    stack.enter_context(runs.locked(output, runs.BUSY))
    seeds, errors = [], {}
    for directory in directories:
        try:
            seed = int(directory.name.removeprefix("seed-"))
            made = _model_of([seed.agent for seed in seeds])
            own = dataclasses.replace(asked, seed=seed, output=directory)
            agent, run, said = own.resumed(made)
        except UsageError as error:
            errors[directory] = error
            continue
        stack.callback(agent.close)
        stack.callback(run.close)
        print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)
        seeds.append(_Seed(agent, run))
    return output, seeds, errors


def _model_of(agents: "list[DynaSAC]") -> "DynamicsModel | None":
    """One that all can have: a class that is read from its file again would be compiled again."""
    from ..models import DynamicsModel

    given = agents[0].task.model if agents else None
    return given if isinstance(given, DynamicsModel) else None


def _told(errors: dict[Path, UsageError]) -> list[str]:
    """What each of those seeds failed by."""
    return [f"dynasac: {directory}: {error}" for directory, error in errors.items()]


def _print_table(seeds: list[_Seed]) -> _Seed:
    """A line for each seed, their mean and the worst; returns the best."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    env_id, episodes = seeds[0].agent.env_id, 0
    table = Table("seed", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = ("real_steps", "gradient_updates", "wall_seconds")
    for name in ("mean return", "real steps", "updates", "seconds"):
        table.add_column(name, justify="right")
    returns: list[float] = []
    for seed in seeds:
        summary = read_json(seed.run.directory / "summary.json")
        measured = summary.get("evaluation")
        if measured is not None:
            returns.append(runs.measured(measured, "mean_return"))
            episodes = len(measured["returns"])
        cells = [f"{runs.measured(summary, name):,.0f}" for name in columns]
        table.add_row(str(seed.agent.seed), f"{returns[-1]:.1f}" if measured else "–", *cells)
    if len(returns) < len(seeds):
        print(f"{env_id}: trained, and not evaluated; metrics.csv has each episode's return")
    else:
        table.add_section()
        table.add_row("mean", f"{sum(returns) / len(returns):.1f}")
        table.add_row("worst", f"{min(returns):.1f}")
        optimum = evaluation.OPTIMAL_RETURN.get(env_id) if episodes == 100 else None
        against = "" if optimum is None else f"; {optimum} is the optimum"
        print(f"{env_id}: mean return over {episodes} episodes{against}")
    Console(highlight=False).print(table)
    return seeds[returns.index(max(returns))] if len(returns) == len(seeds) else seeds[0]
