"""`dynasac envs`."""

import inspect
import textwrap
from dataclasses import dataclass

from .start import configure


@dataclass(frozen=True)
class Envs:
    """List what comes with built-in physics."""

    def run(self) -> int:
        configure()
        import gymnasium as gym

        from ..models import KNOWN_PHYSICS

        width = max(map(len, KNOWN_PHYSICS))
        print("known physics, planned from without a real step:")
        for env_id, model in KNOWN_PHYSICS.items():
            about = inspect.cleandoc(model.__doc__ or "").partition("\n")[0]
            print(f"  {env_id:<{width}}  {about}")
        simulated = [
            name
            for name, spec in gym.registry.items()
            if "mujoco" in str(spec.entry_point) and spec.version == 5
        ]
        print("\nMuJoCo, planned in their own simulators (pip install 'dynasac[mujoco]'):")
        print(textwrap.fill(", ".join(simulated), 78, initial_indent="  ", subsequent_indent="  "))
        print("\nany other with vector observations and bounded continuous actions:")
        print("  dynasac train MODULE:ID --model FILE.py:Class    with your own equations")
        print("  dynasac train MODULE:ID --model ensemble         with a model that is learned")
        return 0
