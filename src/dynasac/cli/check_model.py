"""`dynasac check-model`."""

import contextlib
import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from ..datasets import Columns
from ..errors import UsageError
from .start import configure


@dataclass(frozen=True)
class CheckModel:
    """Try a model on the real environment, or on logged data; exits with 1 if it is wrong.

    Where other parameters predict better, it says which.
    """

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """Gymnasium environment id, or MODULE:ID"""
    model: str = "auto"
    """auto: known physics of the environment; FILE.py:Class: your own; simulator: its own copy"""
    dataset: str | None = None
    """logged transitions to try it on, so that no real step is taken: a CSV file, or minari:ID or
    the directory of a Minari data set"""
    columns: Columns = Columns()
    steps: int = 2000
    """real transitions to collect, without a data set"""
    seed: int = 0
    """of the environment and of the actions tried"""
    env_retries: int = 0
    """times that an episode which the environment fails in is begun again"""
    step_seconds: float | None = None
    """longest that one reset or step of the environment may take"""
    json: bool = False
    """print the whole report as JSON"""

    def run(self) -> int:
        if self.steps < 1:
            raise UsageError("--steps: at least 1")
        if self.seed < 0:
            raise UsageError("--seed: at least 0")
        if self.env_retries < 0:
            raise UsageError("--env-retries: at least 0")
        if self.step_seconds is not None and self.step_seconds <= 0:
            raise UsageError("--step-seconds: more than 0")
        configure()
        from .. import border, datasets, evaluation
        from ..adapt import ladder
        from ..adapt.check import check
        from ..adapt.explore import explore
        from ..agent import resolved
        from ..models import Called, HostModel, PhysicsModel
        from ..spaces import spaces_of

        env = evaluation.make(self.env)
        spaces = spaces_of(env)
        model = resolved(self.model, env, spaces)
        if model is None:
            raise UsageError(f"--model {self.model}: there is nothing to check yet")
        if isinstance(model, HostModel):
            model = Called(model)
        said = []
        if self.dataset is None:
            with contextlib.closing(border.timed(env, self.step_seconds)) as tried:
                transitions = explore(tried, model, spaces, self.steps, self.seed, self.env_retries)
        else:
            logged = datasets.read(self.dataset, spaces, self.columns, model)
            transitions = logged.transitions
            said = [logged.sentence(self.dataset), ""]
        report = check(model, transitions, spaces)
        summary, said = report.summary(), said + report.lines()
        if not report.agrees and isinstance(model, PhysicsModel):
            fit = ladder.refit(model, transitions, spaces)
            refitted = check(fit.model, transitions, spaces)
            summary["fit"] = {**fit.summary(), "agrees": refitted.agrees}
            if fit.sentence:
                said.append(f"fitted to these transitions: {fit.sentence}")
            if fit.model is not model:
                said.append(f"then: {refitted.verdict}")
        print(json.dumps(summary) if self.json else "\n".join(said))
        return 0 if report.agrees else 1
