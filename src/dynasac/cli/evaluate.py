"""`dynasac evaluate`."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import UsageError
from .start import configure
from .words import worth


@dataclass(frozen=True)
class Evaluate:
    """Run a trained policy in the real environment and print its returns."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """run directory"""
    episodes: int = 100
    """how many; episode k starts from reset(seed=SEED+k)"""
    seed: int = 10_000
    """of the first episode"""
    lookahead: Literal[0, 1] = 0
    """1: look one step ahead through the model at each decision"""
    env: str | None = None
    """MODULE:ID, for a run whose environment does not come with Gymnasium"""
    model: str | None = None
    """FILE.py:Class, for lookahead through a model of your own"""
    json: bool = False
    """print the whole result as JSON"""

    def run(self) -> int:
        if self.episodes < 1:
            raise UsageError("--episodes: at least 1")
        if self.seed < 0:
            raise UsageError("--seed: at least 0")
        configure()
        from .. import evaluation, recording

        agent, _ = recording.load_run(self.directory, self.env, self.model, self.lookahead)
        with contextlib.closing(agent):
            measured = agent.evaluate(self.episodes, self.seed, self.lookahead)
        regret = evaluation.regret(agent.env_id, measured)
        if self.json:
            print(json.dumps({"env_id": agent.env_id, **measured.summary(), "regret": regret}))
        else:
            print(worth(agent.env_id, measured, regret))
        return 0
