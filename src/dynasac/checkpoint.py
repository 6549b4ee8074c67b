"""Arrays in safetensors, everything else in JSON; written whole or not at all; no pickle."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from .errors import UsageError

FORMAT = 6
Tree = TypeVar("Tree")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: a temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # made for its owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """What the process takes from the modes of new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON that any reader takes: NaN and infinity are refused."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: the file is missing, cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no {path.name} in {path.parent}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return content


def save_tree(stem: Path, tree: Any, description: dict[str, Any]) -> None:
    """Write `stem.safetensors` with every array of a pytree and `stem.json` beside it."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {
        jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf, order="C") for path, leaf in leaves
    }
    write_bytes(stem.with_suffix(".safetensors"), save(arrays))
    write_json(stem.with_suffix(".json"), {"format": FORMAT, **description})


def load_tree(stem: Path, template: Tree) -> Tree:
    """Read `stem.safetensors` into the shape of `template`, whose arrays may be abstract.

    Raises:
        UsageError: the file is missing or damaged, comes from a later version, or an array has
            another name, shape or dtype, or is not finite.
    """
    path = stem.with_suffix(".safetensors")
    written = read_json(stem.with_suffix(".json")).get("format")
    if written != FORMAT:
        raise UsageError(f"{stem}.json has format {written}; this version reads {FORMAT}")
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise UsageError(f"there is no {path.name} in {path.parent}") from None
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [jax.tree_util.keystr(key).lstrip(".") for key, _ in leaves]
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))
        raise UsageError(f"{path} holds other arrays than expected: {', '.join(odd[:3])}")
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise UsageError(
                f"{path}: {name} is {array.dtype}{list(array.shape)}, "
                f"not {leaf.dtype}{list(leaf.shape)}"
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} holds numbers that are not finite")
    # NumPy's arrays stay NumPy's: as JAX's they would lose half of their 64 bits
    found = [
        arrays[name] if isinstance(leaf, np.ndarray) else jnp.asarray(arrays[name])
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)
