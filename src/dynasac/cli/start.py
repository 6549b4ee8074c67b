"""What every command does before it imports JAX."""

import contextlib
import os
import sys
from pathlib import Path

from ..processes import processors


def look_here() -> None:
    """Look for modules in the current directory too, after those that are installed."""
    if "" not in sys.path:
        sys.path.append("")


CORES = 2
"""that planning is spread over, if there are as many; with more it was not measured"""


def configure() -> None:
    """Quiet on standard error, and compiled programs kept from one run to the next."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    use_cores()
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "dynasac" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def use_cores() -> None:
    """A device of JAX's for each core to plan on, unless `JAX_NUM_CPU_DEVICES` says how many.

    Nothing changes in a process that has computed already.
    """
    import jax

    if jax.config.values["jax_num_cpu_devices"] < 0:
        with contextlib.suppress(RuntimeError):  # JAX has counted its devices
            jax.config.update("jax_num_cpu_devices", min(CORES, processors()))
