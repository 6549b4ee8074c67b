"""Agents × seeds: equal real steps, equal evaluation, and what can be said of the difference.

    from dynasac.comparison import Design, compare

    result = compare(Design("Pendulum-v1", seeds=5), Path("runs/compare"))

Each training is a process of its own that leaves a run directory, DIR/AGENT/seed-N.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from .. import checkpoint
from ..errors import UsageError
from . import agents, display, processes
from .agents import NAMES, Agent, Design, Job, training_name
from .processes import THREADS, Child
from .results import gathered

__all__ = ["NAMES", "Design", "compare"]


def compare(
    design: Design, output: Path, side_by_side: int | None = None, progress_bar: bool = False
) -> dict[str, Any]:
    """Train every agent with every seed, and write and return what comparison.json holds.

    What `output` holds of the same design is not done again; seeds and agents may be added. A
    training that fails is recorded with its error, in `runs`, and the others go on.

    Arguments:
        output: the directory of the comparison.
        side_by_side: trainings at a time, of one thread each; None for the number of processors.
        progress_bar: bars in terminals, a line now and then elsewhere.

    Raises:
        UsageError: the design makes no sense here, or `output` holds something else.
    """
    if side_by_side is not None and side_by_side < 1:
        raise UsageError(f"--jobs {side_by_side}: at least 1")
    facts = agents.check(design)
    contenders = [agents.agent(name, design, facts.episode_steps) for name in design.names]
    claim(output, design, contenders)
    everything = planned(output, design, contenders)
    children = [child for child in everything if not _done(output, child)]
    for child in children:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(output / child.name)  # of a training that was stopped or failed
    at_a_time = processes.processors() if side_by_side is None else side_by_side
    budgets = {one.name: one.real_steps for one in contenders}
    with (
        _environment() as environment,
        display.shown(output, budgets, everything, children, at_a_time, progress_bar) as watch,
    ):
        errors = processes.run(children, at_a_time, environment, watch)
    content = gathered(output, design, facts, contenders, errors)
    checkpoint.write_json(output / "comparison.json", content)
    return content


def claim(output: Path, design: Design, contenders: Sequence[Agent]) -> None:
    """Write down in `output` what is compared in it, or see that it is the same.

    Raises:
        UsageError: it holds another comparison, or something else.
    """
    asked = {
        "env": design.env,
        "model": design.model,
        "preset": design.preset,
        "evaluation_episodes": design.evaluation_episodes,
        "agents": {
            one.name: {"real_steps": one.real_steps, "settings": one.settings} for one in contenders
        },
    }
    file = output / "asked.json"
    if file.exists():
        earlier = checkpoint.read_json(file)
        before = earlier.get("agents")
        before = before if isinstance(before, dict) else {}
        differ = [name for name in asked if name != "agents" and earlier.get(name) != asked[name]]
        differ += [
            f"the {'settings' if mine['real_steps'] == theirs.get('real_steps') else 'real steps'}"
            f" of {name}"
            for name, mine in asked["agents"].items()
            if isinstance(theirs := before.get(name, mine), dict) and theirs != mine
        ]
        if differ:
            raise UsageError(
                f"{output} holds a comparison that differs in {', '.join(differ)}: ask for the "
                "same, or choose another --output"
            )
        asked["agents"] = {**before, **asked["agents"]}
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} already holds something: choose another --output")
    try:
        checkpoint.write_json(file, asked)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from None


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
            command = (sys.executable, "-m", "dynasac.comparison")
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


@contextlib.contextmanager
def _environment() -> Iterator[dict[str, str]]:
    """Variables for the processes: one thread, the modules we find, the programs we compiled."""
    with contextlib.ExitStack() as stack:
        compiled = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        if compiled is None:
            compiled = stack.enter_context(tempfile.TemporaryDirectory())
        yield {
            **THREADS,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
