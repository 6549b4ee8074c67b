"""dynasac: Soft Actor-Critic that plans with the physics you know."""

import gc

_collecting = gc.isenabled()
gc.disable()  # all of it stays, and would be looked through again and again
try:
    from .agent import DynaSAC
    from .datasets import Columns
    from .errors import UsageError
    from .evaluation import Evaluation
    from .models import (
        DynamicsModel,
        FuncEnvModel,
        HostModel,
        HostStep,
        ModelStep,
        MountainCar,
        Pendulum,
        PhysicsModel,
        SimulatorModel,
    )
    from .planning import PlanningConfig, StartWeights
    from .presets import Config, preset
    from .sac import SACConfig
    from .together import learn_together
    from .types import Transition
finally:
    if _collecting:
        gc.enable()

__all__ = [
    "Columns",
    "Config",
    "DynaSAC",
    "DynamicsModel",
    "Evaluation",
    "FuncEnvModel",
    "HostModel",
    "HostStep",
    "ModelStep",
    "MountainCar",
    "Pendulum",
    "PhysicsModel",
    "PlanningConfig",
    "SACConfig",
    "SimulatorModel",
    "StartWeights",
    "Transition",
    "UsageError",
    "learn_together",
    "preset",
]
