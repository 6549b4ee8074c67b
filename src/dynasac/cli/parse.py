"""From words to a command; each is a dataclass whose fields are its options."""

import argparse
import contextlib
import io
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
from .train import Train

COMMANDS = {
    "evaluate": Evaluate,
    "check-model": CheckModel,
    "compare": Compare,
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
    """The command; settings that are not given are those of the preset and model that are."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=list(presets.PRESETS), default="default")
    first.add_argument("--model", default="auto")
    first.add_argument("--real-episodes", "--real_episodes", type=int)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            chosen, _ = first.parse_known_args(arguments)
        except SystemExit:  # tyro says below what is wrong, better
            chosen = first.parse_args([])
    settings = presets.preset(chosen.preset, chosen.model)
    train_defaults = Train(env="", settings=settings, given_episodes=chosen.real_episodes)
    object.__setattr__(train_defaults, "env", tyro.MISSING)  # which no annotation admits
    train = tyro.conf.subcommand("train", default=train_defaults, prefix_name=False)
    others = [
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)]
        for name, kind in COMMANDS.items()
    ]
    commands: Any = Union[Annotated[Train, train], *others]
    return tyro.cli(commands, prog="dynasac", description=DESCRIPTION, args=arguments)
