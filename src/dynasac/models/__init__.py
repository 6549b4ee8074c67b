"""Dynamics models: the contract, the physics that comes with the package, and one's own."""

import dataclasses
import importlib.util
import inspect
import os
import sys
import warnings
from pathlib import Path

import gymnasium as gym
from gymnasium.experimental.functional import FuncEnv

from ..errors import UsageError, one_line
from .base import DynamicsModel, ModelStep, PhysicsModel, as_arrays, check_contract
from .functional import FuncEnvModel
from .mountain_car import MountainCar
from .pendulum import Pendulum
from .simulator import Called, HostModel, HostStep, MujocoModel, SimulatorModel, in_mujoco
from .simulator import simulator as simulator_of
from .turned import Turned

KNOWN_PHYSICS: dict[str, type[PhysicsModel]] = {
    "Pendulum-v1": Pendulum,
    "MountainCarContinuous-v0": MountainCar,
}
"""The built-in model for each environment id."""


def known_model(env: gym.Env) -> DynamicsModel | HostModel:
    """What is known of an environment: its built-in physics, or its own simulator if it is MuJoCo.

    Raises:
        UsageError: nothing is known; the message says how to bring a model.
    """
    env_id = env.spec.id if env.spec else type(env.unwrapped).__name__
    if env_id in KNOWN_PHYSICS:
        return KNOWN_PHYSICS[env_id]()
    if env.spec and in_mujoco(env.unwrapped):
        return own_simulator(env)
    raise UsageError(
        f"no physics is known for {env_id} (there is for {', '.join(KNOWN_PHYSICS)}): give your "
        "own with --model FILE.py:Class, learn a model with --model ensemble, plan in the "
        "environment's own simulator with --model simulator, or use --model none for plain SAC"
    )


def own_simulator(env: gym.Env) -> HostModel:
    """Another instance of an environment as a model of it.

    Raises:
        UsageError: the environment was not made by `gymnasium.make`, or its state cannot be set.
    """
    if env.spec is None:
        raise UsageError("--model simulator needs an environment made by gymnasium.make")
    return simulator_of(gym.make(env.spec, disable_env_checker=True))


def model_from_file(reference: str) -> DynamicsModel | HostModel:
    """Make the model that `FILE.py:Class` names, as typed by the person at the keyboard.

    The class is a `DynamicsModel`, a `HostModel`, a Gymnasium `FuncEnv`, or a `gymnasium.Env` whose
    state can be set.

    Raises:
        UsageError: the file or class is not there, does not import, or lacks a method.
    """
    path, _, class_name = reference.rpartition(":")
    if not path.endswith(".py") or not class_name:
        raise UsageError(f"--model {reference}: write it as FILE.py:Class, as in cart.py:Cart")
    if not Path(path).is_file():
        raise UsageError(f"--model {reference}: there is no file {path}")
    name = f"dynasac_model_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # the path of a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with warnings.catch_warnings():
            # a file that has the environment too has been read for that already
            warnings.filterwarnings("ignore", ".*Overriding environment")
            spec.loader.exec_module(module)
    except Exception as error:
        said, line = one_line(error), _line_of(error, path)
        if isinstance(error, SyntaxError) and error.filename == os.path.abspath(path):
            said, line = f"{type(error).__name__}: {error.msg}", error.lineno
        raise UsageError(f"{path} does not import: {said} (line {line})") from None
    found = getattr(module, class_name, None)
    if found is None:
        classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == spec.name
        ]
        raise UsageError(f"{path} has no class {class_name}; it has {', '.join(classes) or 'none'}")
    kinds = (DynamicsModel, HostModel, FuncEnv, gym.Env)
    if not (inspect.isclass(found) and issubclass(found, kinds)):
        raise UsageError(
            f"{class_name} in {path} must be a subclass of dynasac.PhysicsModel, or of gymnasium's "
            "FuncEnv or Env"
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        methods = f"method{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise UsageError(f"{class_name} in {path} lacks the {methods}")
    required = [
        field.name
        for field in (dataclasses.fields(found) if dataclasses.is_dataclass(found) else ())
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise UsageError(
            f"{class_name} in {path} has parameters without a value: {', '.join(required)}; "
            "give each a default"
        )
    try:
        made = found()
    except Exception as error:  # the class is the user's code
        raise UsageError(f"{class_name}() in {path} fails: {one_line(error)}") from None
    if isinstance(made, FuncEnv):
        return FuncEnvModel(made)
    return simulator_of(made) if isinstance(made, gym.Env) else made


def _line_of(error: Exception, path: str) -> int | str:
    """The last line of `path` in the error's traceback."""
    traceback, line = error.__traceback__, "?"
    while traceback:
        if traceback.tb_frame.f_code.co_filename == os.path.abspath(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


__all__ = [
    "KNOWN_PHYSICS",
    "Called",
    "DynamicsModel",
    "FuncEnvModel",
    "HostModel",
    "HostStep",
    "ModelStep",
    "MountainCar",
    "MujocoModel",
    "Pendulum",
    "PhysicsModel",
    "SimulatorModel",
    "Turned",
    "as_arrays",
    "check_contract",
    "known_model",
    "model_from_file",
    "own_simulator",
    "simulator_of",
]
