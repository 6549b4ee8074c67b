"""Agents × seeds: equal evaluation after known real steps, and what can be said of the difference.

    from dynasac.comparison import Design, compare

    result = compare(Design("Pendulum-v1", seeds=5), Path("runs/compare"))

Each training is a process of its own that leaves a run directory, DIR/AGENT/seed-N.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import checkpoint, processes
from ..errors import UsageError
from ..processes import Child
from ..runs import held
from . import agents, display
from .agents import NAMES, Agent, Design, Job, training_name
from .results import gathered

__all__ = ["NAMES", "Design", "compare"]


def compare(
    design: Design, output: Path, side_by_side: int | None = None, progress_bar: bool = False
) -> dict[str, Any]:
    """Train every agent with every seed, and write and return what comparison.json holds.

    What `output` holds of the same design is not done again, and is part of the result even if it
    is not asked for again; seeds and agents may be added. A training that fails is recorded with
    its error, in `runs`, and the others go on.

    Arguments:
        output: the directory of the comparison.
        side_by_side: trainings at a time, of one thread each; None for the number of processors.
        progress_bar: bars in terminals, a line now and then elsewhere.

    Raises:
        UsageError: the design makes no sense here, or `output` holds something else or is in use.
    """
    if side_by_side is not None and side_by_side < 1:
        raise UsageError(f"--jobs {side_by_side}: at least 1")
    facts = agents.check(design)
    contenders = [agents.agent(name, design, facts.episode_steps) for name in design.names]
    with held(output, "comparison"), processes.environment() as environment:
        everyone = claim(output, design, contenders)
        everything = planned(output, design, contenders)
        children = [child for child in everything if not _done(output, child)]
        for child in children:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(output / child.name)  # of a training that was stopped or failed
        at_a_time = processes.processors() if side_by_side is None else side_by_side
        budgets = {one.name: one.real_steps for one in contenders}
        with display.shown(output, budgets, everything, children, at_a_time, progress_bar) as watch:
            errors = processes.run(children, at_a_time, environment, watch)
        content = gathered(output, design, facts, everyone, errors)
        checkpoint.write_json(output / "comparison.json", content)
    return content


def claim(output: Path, design: Design, contenders: Sequence[Agent]) -> list[Agent]:
    """Write down in `output` what is compared in it, or see that it is the same.

    Returns:
        all agents that were ever asked for in it, in that order.

    Raises:
        UsageError: it holds another comparison.
    """
    asked = {
        "env": design.env,
        "model": design.model,
        "preset": design.preset,
        "evaluation_episodes": design.evaluation_episodes,
    }
    everyone = {one.name: one for one in contenders}
    file = output / "asked.json"
    if file.exists():
        earlier = checkpoint.read_json(file)
        try:
            before = {name: agents.read(name, one) for name, one in earlier["agents"].items()}
        except (AttributeError, KeyError, TypeError):
            raise UsageError(
                f"{file} was not written by this version: choose another --output"
            ) from None
        differ = [name for name in asked if earlier.get(name) != asked[name]]
        differ += [
            f"the {'settings' if mine.real_steps == theirs.real_steps else 'real steps'}"
            f" of {mine.name}"
            for mine in contenders
            if (theirs := before.get(mine.name, mine)).real_steps != mine.real_steps
            or theirs.settings != mine.settings
        ]
        if differ:
            raise UsageError(
                f"{output} holds a comparison that differs in {', '.join(differ)}: ask for the "
                "same, or choose another --output"
            )
        everyone = {**before, **everyone}
    written = {name: dataclasses.asdict(one) for name, one in everyone.items()}
    checkpoint.write_json(file, {**asked, "agents": written})
    return list(everyone.values())


def planned(output: Path, design: Design, contenders: Sequence[Agent]) -> list[Child]:
    """The process of each training; all agents of a seed before the next seed."""
    children = []
    for seed in range(design.seeds):
        for one in contenders:
            name = training_name(one.name, seed)
            matched = training_name("dynasac", seed) if one.name == "sac-matched" else None
            job = Job(
                agent=one.name,
                env=design.env,
                model=design.model,
                preset=design.preset,
                seed=seed,
                real_steps=one.real_steps,
                evaluation_episodes=design.evaluation_episodes,
                directory=str(output / name),
                matched=matched and str(output / matched),
            )
            # -P: `python -m` would look into the current directory before all packages
            command = (sys.executable, "-P", "-m", "dynasac.comparison")
            children.append(
                Child(
                    name,
                    (*command, json.dumps(dataclasses.asdict(job))),
                    output / f"{name}.log",
                    after=matched,
                )
            )
    return children


def _done(output: Path, child: Child) -> bool:
    return (output / child.name / "summary.json").exists()
