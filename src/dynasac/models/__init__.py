"""Dynamics models: the contract, the physics that comes with the package, and one's own."""

import dataclasses
import importlib.util
import inspect
import sys
from pathlib import Path

from ..errors import UsageError, one_line
from .base import DynamicsModel, ModelStep, PhysicsModel, check_contract
from .mountain_car import MountainCar
from .pendulum import Pendulum

KNOWN_PHYSICS: dict[str, type[PhysicsModel]] = {
    "Pendulum-v1": Pendulum,
    "MountainCarContinuous-v0": MountainCar,
}
"""The built-in model for each environment id."""


def known_model(env_id: str) -> PhysicsModel:
    """The built-in physics of an environment.

    Raises:
        UsageError: there is none; the message says how to bring one.
    """
    if env_id not in KNOWN_PHYSICS:
        raise UsageError(
            f"no physics is known for {env_id} (there is for {', '.join(KNOWN_PHYSICS)}): give "
            "your own with --model FILE.py:Class, or use --model none for plain SAC"
        )
    return KNOWN_PHYSICS[env_id]()


def model_from_file(reference: str) -> DynamicsModel:
    """Make the model that `FILE.py:Class` names, as typed by the person at the keyboard.

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
        spec.loader.exec_module(module)
    except Exception as error:
        line = getattr(error, "lineno", None) or _line_of(error, path)
        raise UsageError(f"{path} does not import: {one_line(error)} (line {line})") from None
    found = getattr(module, class_name, None)
    if found is None:
        classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == spec.name
        ]
        raise UsageError(f"{path} has no class {class_name}; it has {', '.join(classes) or 'none'}")
    if not (inspect.isclass(found) and issubclass(found, DynamicsModel)):
        raise UsageError(f"{class_name} in {path} must be a subclass of dynasac.PhysicsModel")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UsageError(f"{class_name} in {path} lacks the method {', '.join(missing)}")
    required = [
        field.name
        for field in dataclasses.fields(found)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise UsageError(
            f"{class_name} in {path} has parameters without a value: {', '.join(required)}; "
            "give each a default"
        )
    try:
        return found()
    except Exception as error:  # the class is the user's code
        raise UsageError(f"{class_name}() in {path} fails: {one_line(error)}") from None


def _line_of(error: Exception, path: str) -> int | str:
    """The last line of `path` in the error's traceback."""
    traceback, line = error.__traceback__, "?"
    while traceback:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


__all__ = [
    "KNOWN_PHYSICS",
    "DynamicsModel",
    "ModelStep",
    "MountainCar",
    "Pendulum",
    "PhysicsModel",
    "check_contract",
    "known_model",
    "model_from_file",
]
