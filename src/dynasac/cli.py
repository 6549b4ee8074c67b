"""The command line: parsing, and what people read. Everything it does, the Python API does."""

import argparse
import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from . import presets
from .errors import UsageError
from .presets import Config

DESCRIPTION = """Train a controller from the physics you know.

examples:
  dynasac train Pendulum-v1                   plan from the known physics, without a real step
  dynasac train Pendulum-v1 --preset seed     SAC-Dyna-Q as first described, 20 real episodes
  dynasac train MODULE:ID --model FILE.py:Class      an environment and a model of your own
  dynasac check-model MODULE:ID --model FILE.py:Class        is the model right?
  dynasac evaluate runs/Pendulum-v1           what the trained policy is worth"""


@dataclass(frozen=True)
class Train:
    """Train a controller and leave a run directory."""

    env: Annotated[str, tyro.conf.Positional]
    """Gymnasium environment id, or MODULE:ID"""
    model: str = "auto"
    """auto: known physics of the environment, or its MuJoCo simulator; FILE.py:Class: your own;
    simulator: a copy of the environment; ensemble: learn one; none: plain SAC"""
    preset: Literal["default", "seed"] = "default"
    """the settings below that are not given: the best known, or the seed document's"""
    seed: int = 0
    """decides everything random"""
    output: Path | None = None
    """run directory; runs/ENV, numbered, if not given"""
    resume: bool = False
    """go on with the run in --output, with its own settings"""
    evaluation_episodes: int = 100
    """episodes of each evaluation, episode k from reset(seed=10000+k)"""
    settings: Annotated[Config, tyro.conf.arg(name="")] = presets.DEFAULT


@dataclass(frozen=True)
class Evaluate:
    """Run a trained policy in the real environment and print its returns."""

    directory: Annotated[Path, tyro.conf.Positional]
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


def main() -> None:
    """The `dynasac` command: exits with 0, with 1 and a line that says what to do, or with 130."""
    try:
        sys.exit(run(sys.argv[1:]))
    except UsageError as error:
        print(f"dynasac: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("dynasac: stopped", file=sys.stderr)
        sys.exit(130)


def run(arguments: list[str]) -> int:
    """Parse and carry out one command; returns the exit code."""
    command = _parse(arguments or ["--help"])
    if isinstance(command, CheckModel):
        return check_model(command)
    return evaluate(command) if isinstance(command, Evaluate) else train(command)


def _parse(arguments: list[str]) -> Any:
    """The command; settings that are not given are those of the preset and model that are."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=list(presets.PRESETS), default="default")
    first.add_argument("--model", default="auto")
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            chosen, _ = first.parse_known_args(arguments)
        except SystemExit:  # tyro says below what is wrong, better
            chosen = first.parse_args([])
    settings = presets.preset(chosen.preset, chosen.model)
    train_defaults = Train(env="", settings=settings)
    object.__setattr__(train_defaults, "env", tyro.MISSING)  # which no annotation admits
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=train_defaults, prefix_name=False)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate", prefix_name=False)]
        | Annotated[CheckModel, tyro.conf.subcommand("check-model", prefix_name=False)]
    )
    return tyro.cli(commands, prog="dynasac", description=DESCRIPTION, args=arguments)


def train(command: Train) -> int:
    """`dynasac train`."""
    presets.check(command.settings)
    if command.evaluation_episodes < 1:
        raise UsageError("--evaluation-episodes: at least 1")
    if command.resume and command.output is None:
        raise UsageError("--resume needs --output DIR, the run to go on with")
    _configure()
    from . import evaluation, recording, runs
    from .agent import DynaSAC
    from .models import DynamicsModel

    if command.resume:
        assert command.output is not None
        agent, directory = recording.resume(
            command.output, command.env, command.model, command.settings.real_episodes
        )
    else:
        agent = DynaSAC(command.env, command.model, command.settings, command.seed)
        asked = recording.asked_for(agent, command.model, command.preset)
        directory = runs.Run.create(command.output or _free_directory(agent.env_id), asked)
    go_on = f"dynasac train {command.env} --resume --output {directory.directory}"
    if command.model != "auto":
        go_on += f" --model {command.model}"
    try:
        measured = recording.record_training(
            agent, directory, command.evaluation_episodes, progress_bar=True
        )
    except recording.Interrupted:
        print(f"dynasac: stopped; what was learned is in {directory.directory}", file=sys.stderr)
        print(f"go on with:  {go_on}", file=sys.stderr)
        return 130
    _print_result(agent, measured, evaluation.regret(agent.env_id, measured), directory)
    print("next:")
    if isinstance(agent.model, DynamicsModel):
        own = f" --env {command.env}" if ":" in command.env else ""
        own += f" --model {command.model}" if ":" in command.model else ""
        print(f"  dynasac evaluate {directory.directory} --lookahead 1{own}")
    print("  dynasac train --help")
    return 0


def evaluate(command: Evaluate) -> int:
    """`dynasac evaluate`."""
    if command.episodes < 1:
        raise UsageError("--episodes: at least 1")
    if command.seed < 0:
        raise UsageError("--seed: at least 0")
    _configure()
    from . import evaluation, recording

    agent, _ = recording.load_run(command.directory, command.env, command.model)
    measured = agent.evaluate(command.episodes, command.seed, command.lookahead)
    regret = evaluation.regret(agent.env_id, measured)
    if command.json:
        print(json.dumps({"env_id": agent.env_id, **measured.summary(), "regret": regret}))
    else:
        print(_worth(agent.env_id, measured, regret))
    return 0


def check_model(command: CheckModel) -> int:
    """`dynasac check-model`."""
    if command.steps < 1:
        raise UsageError("--steps: at least 1")
    if command.seed < 0:
        raise UsageError("--seed: at least 0")
    _configure()
    from . import evaluation
    from .adapt.check import check
    from .adapt.explore import explore
    from .agent import resolved
    from .models import Called, HostModel
    from .spaces import spaces_of

    env = evaluation.make(command.env)
    spaces = spaces_of(env)
    model = resolved(command.model, env, spaces)
    if model is None:
        raise UsageError(f"--model {command.model}: there is nothing to check yet")
    if isinstance(model, HostModel):
        model = Called(model)
    transitions = explore(env, model, spaces, command.steps, command.seed)
    report = check(model, transitions, spaces)
    if command.json:
        print(json.dumps(report.summary()))
    else:
        print("\n".join(report.lines()))
    return 0 if report.agrees else 1


def _print_result(agent, measured, regret: float | None, directory) -> None:
    summary = json.loads((directory.directory / "summary.json").read_text())
    print(_worth(agent.env_id, measured, regret))
    print(
        f"  learned from {summary['real_steps']:,} real and {summary['synthetic_transitions']:,} "
        f"synthetic transitions in {summary['gradient_updates']:,} updates, "
        f"{summary['wall_seconds']:.1f} s ({summary['compile_seconds']:.1f} s of them compiling)"
    )
    print(f"  everything is in {directory.directory}/")


def _worth(env_id: str, measured, regret: float | None) -> str:
    against = "" if regret is None else f", {regret:.1f} below the optimum"
    return (
        f"{env_id}: mean return {measured.mean_return:.1f} ± {measured.std_return:.1f} over "
        f"{len(measured.returns)} episodes{against}"
    )


def _free_directory(env_id: str) -> Path:
    """runs/ENV, or the first of runs/ENV-2, runs/ENV-3, … that is free."""
    base = Path("runs") / env_id.replace("/", "-").replace(":", "-")
    number = 1
    while (candidate := base if number == 1 else Path(f"{base}-{number}")).exists():
        number += 1
    return candidate


def _configure() -> None:
    """Quiet on standard error, and compiled programs kept from one run to the next.

    MODULE:ID is looked for in the current directory too, as `python -m` does.
    """
    sys.path.insert(0, "")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "dynasac" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


if __name__ == "__main__":
    main()
