"""What every command does before it imports JAX."""

import os
import sys
from pathlib import Path


def look_here() -> None:
    """Look for modules in the current directory too, after those that are installed."""
    if "" not in sys.path:
        sys.path.append("")


def configure() -> None:
    """Quiet on standard error, and compiled programs kept from one run to the next."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "dynasac" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
