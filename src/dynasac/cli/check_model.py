"""`dynasac check-model`."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from ..errors import UsageError
from .start import configure


@dataclass(frozen=True)
class CheckModel:
    """Try a model on the real environment; exits with 1 if it is wrong."""

    env: Annotated[str, tyro.conf.Positional]
    """Gymnasium environment id, or MODULE:ID"""
    model: str = "auto"
    """auto: known physics of the environment; FILE.py:Class: your own; simulator: its own copy"""
    steps: int = 2000
    """real transitions to collect"""
    seed: int = 0
    """of the environment and of the actions tried"""
    json: bool = False
    """print the whole report as JSON"""

    def run(self) -> int:
        if self.steps < 1:
            raise UsageError("--steps: at least 1")
        if self.seed < 0:
            raise UsageError("--seed: at least 0")
        configure()
        from .. import evaluation
        from ..adapt.check import check
        from ..adapt.explore import explore
        from ..agent import resolved
        from ..models import Called, HostModel
        from ..spaces import spaces_of

        env = evaluation.make(self.env)
        spaces = spaces_of(env)
        model = resolved(self.model, env, spaces)
        if model is None:
            raise UsageError(f"--model {self.model}: there is nothing to check yet")
        if isinstance(model, HostModel):
            model = Called(model)
        transitions = explore(env, model, spaces, self.steps, self.seed)
        report = check(model, transitions, spaces)
        if self.json:
            print(json.dumps(report.summary()))
        else:
            print("\n".join(report.lines()))
        return 0 if report.agrees else 1
