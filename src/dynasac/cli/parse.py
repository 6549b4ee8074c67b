"""From words to a command; each is a dataclass whose fields are its options."""

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Protocol, Union, runtime_checkable

import tyro

from .. import presets
from .check_model import CheckModel
from .compare import Compare
from .completion import Completion
from .envs import Envs
from .evaluate import Evaluate
from .export import Export
from .record import Record
from .report import Report
from .sweep import Sweep
from .train import Train, own

COMMANDS = {
    "evaluate": Evaluate,
    "check-model": CheckModel,
    "compare": Compare,
    "sweep": Sweep,
    "report": Report,
    "record": Record,
    "export": Export,
    "envs": Envs,
    "completion": Completion,
}
"""besides `train`, whose defaults depend on what is asked for"""

DESCRIPTION = """Train a controller from the physics you know.

examples:
  dynasac train Pendulum-v1                   plan from the known physics, without a real step
  dynasac train Pendulum-v1 --preset seed     SAC-Dyna-Q as first described, 20 real episodes
  dynasac train MODULE:ID --model FILE.py:Class      an environment and a model of your own
  dynasac train MODULE:ID --model FILE.py:Class --dataset log.csv      from logged data
  dynasac check-model MODULE:ID --model FILE.py:Class        is the model right?
  dynasac evaluate runs/Pendulum-v1           what the trained policy is worth
  dynasac report runs/Pendulum-v1             everything about the run on one page"""


@runtime_checkable
class Command(Protocol):
    """One thing to do, with all that was said about it."""

    def run(self) -> int:
        """Do it; returns the exit code."""
        ...


def parse(arguments: list[str]) -> Command:
    """The command; settings that are not given are those of the preset and model that are.

    What cannot be parsed is said in one line, and ends the program with 2.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=list(presets.PRESETS), default="default")
    first.add_argument("--model", default="auto")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--output", type=Path)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            chosen, _ = first.parse_known_args(arguments)
        except SystemExit:  # tyro says below what is wrong, better
            chosen = first.parse_args([])
    if chosen.resume and chosen.output:
        train_defaults = own(chosen.output)
    else:
        train_defaults = Train(env="", settings=presets.preset(chosen.preset, chosen.model))
    if not train_defaults.env:
        object.__setattr__(train_defaults, "env", tyro.MISSING)  # which no annotation admits
    train = tyro.conf.subcommand("train", default=train_defaults, prefix_name=False)
    others = [
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)]
        for name, kind in COMMANDS.items()
    ]
    commands: Any = Union[Annotated[Train, train], *others]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog="dynasac", description=DESCRIPTION, args=arguments)
    except SystemExit as stopped:
        if stopped.code:
            name = next((word for word in arguments[:1] if word in ("train", *COMMANDS)), "")
            line = _in_one_line(said.getvalue())
            helped = " ".join(filter(None, ["dynasac", name, "--help"]))
            print(f"dynasac: {line} ({helped} has all there is)", file=sys.stderr)
        raise


def _in_one_line(box: str) -> str:
    """What is wrong, out of the box that tyro draws around it, and the first option like it."""
    _, _, below = "\n".join(row.strip("│╭╮╰╯─ ") for row in box.splitlines()).partition("\n")
    # where the terminal has no lines to draw, the box has none at its sides and dashes inside
    parts = [part.split("\n") for part in re.split(r"\n+-*\n+", below.strip("-\n"))]
    line = " ".join(parts[0])
    like = [part[1].split()[0] for part in parts[1:] if part[0].startswith("Perhaps you meant")]
    return f"{line[:1].lower()}{line[1:]}{f'; perhaps you meant {like[0]}' if like else ''}"
