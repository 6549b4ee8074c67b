"""Files that appear whole or not at all, and say when they are not what was written; no pickle.

A tree of arrays is one safetensors file. Its head also holds, as JSON, a description and two
checksums: of the head itself and of the arrays. So nothing that is read was damaged on the way, and
there are no two files that could be of different moments. A checksum is no signature: who means
harm can compute one, so sizes and types are held against what is expected all the same, before
anything is allocated.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import UsageError

FORMAT = 10
"""of the files that `save_tree` writes"""

PARTIAL = ".partial"
"""how the names of files end that are not yet whole"""

LONGEST_HEAD = 10_000_000
"""bytes that the head of a file may have"""
LONGEST_JSON = 30_000_000
"""bytes that a file of JSON may have"""
DEEPEST = 30
"""how deep JSON may be nested: what goes through it calls itself as often"""

BEGINNING = b'{"__metadata__":{"dynasac":"'
HEAD_SUM = b'{\\"head\\": \\"'
"""what stands before the head's checksum"""
NO_SUM = "0" * 64
"""in place of the head's checksum while that is taken"""

DTYPES = {
    "F32": np.float32,
    "F64": np.float64,
    "F16": np.float16,
    "I32": np.int32,
    "I64": np.int64,
    "U32": np.uint32,
    "BOOL": np.bool_,
}
"""by their names in safetensors files"""

Tree = TypeVar("Tree")


class Damaged(UsageError):
    """A file is not there as it was written, or was not written by this program."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: a temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # made for its owner alone
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Make the names in a folder last: a rename is otherwise lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        with regular(path) as file:
            written = file.read(LONGEST_JSON + 1)
        if len(written) > LONGEST_JSON:
            raise ValueError(f"it has more than {LONGEST_JSON:,} bytes")
        content = parsed(written)
    except FileNotFoundError:
        raise UsageError(f"there is no {path.name} in {path.parent}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return content


def regular(path: Path) -> BinaryIO:
    """Open a file to read. What is none, a FIFO or a device, might never begin or never end.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=_without_waiting))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        stack.pop_all()
        return file


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def parsed(content: bytes) -> Any:
    """JSON such as this program writes: finite numbers of 64 bits, and not deeply nested.

    Raises:
        ValueError, RecursionError: it is none.
    """
    found = json.loads(
        content.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite
    )
    level = [found]
    for _ in range(DEEPEST + 1):
        nested = (each for each in level if isinstance(each, dict | list))
        level = [i for each in nested for i in (each.values() if isinstance(each, dict) else each)]
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    return found


def _whole(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{digits[:30]} has more than 64 bits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:30]} is no finite number")
    return number


def save_tree(path: Path, tree: Any, description: dict[str, Any]) -> None:
    """Write every array of a pytree, and a description as JSON holds it, to one safetensors file.

    Raises:
        ValueError: the description holds NaN or infinity.
        OSError: the file cannot be written; what was there before is still there.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {
        jax.tree_util.keystr(key).lstrip("."): np.asarray(leaf, order="C") for key, leaf in leaves
    }
    save_arrays(path, arrays, description)


def save_arrays(path: Path, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """What `save_tree` does, for arrays that have names."""

    def written(head: str, of_arrays: str) -> bytes:
        told = {"head": head, "arrays": of_arrays, "format": FORMAT, "description": description}
        return save(arrays, {"dynasac": json.dumps(told, allow_nan=False)})

    content = written(NO_SUM, NO_SUM)
    _, payload = _parts(content)
    of_arrays = hashlib.sha256(payload).hexdigest()
    head, payload = _parts(written(NO_SUM, of_arrays))
    of_head = hashlib.sha256(head).hexdigest()
    write_bytes(path, written(of_head, of_arrays))


def _parts(content: bytes) -> tuple[bytes, memoryview]:
    """The head of a safetensors file without its length, and the arrays."""
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size], memoryview(content)[8 + size :]


@dataclass(frozen=True)
class SavedTree:
    """A file of `save_tree` that is open, and whose head is whole."""

    path: Path
    description: dict[str, Any]
    _file: BinaryIO
    _head: bytes
    _entries: dict[str, Any]
    _sum: str
    """of the arrays"""

    def check_room(self, numbers: int) -> None:
        """Raises `Damaged` if the file has room for fewer than so many numbers.

        Known before a template is made as large as somebody else's settings say.
        """
        if numbers > os.fstat(self._file.fileno()).st_size:
            raise Damaged(f"{self.path} is damaged: it is too small for what it describes")

    def tree(self, template: Tree) -> Tree:
        """The arrays in the shape of `template`, whose own may be abstract.

        Raises:
            Damaged: the arrays are damaged, not finite, or have other names, shapes or dtypes.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        names = [jax.tree_util.keystr(key).lstrip(".") for key, _ in leaves]
        if set(names) != set(self._entries):
            odd = sorted(set(names) ^ set(self._entries))
            raise Damaged(f"{self.path} holds other arrays than expected: {', '.join(odd[:3])}")
        expected = 0
        for name, (_, leaf) in zip(names, leaves, strict=True):
            theirs, ours = self._entries[name], (np.dtype(leaf.dtype), list(leaf.shape))
            if theirs != ours:
                raise Damaged(f"{self.path}: {name} is {_said(theirs)}, not {_said(ours)}")
            expected += ours[0].itemsize * int(np.prod(leaf.shape, dtype=object))
        missing = expected - (os.fstat(self._file.fileno()).st_size - 8 - len(self._head))
        if missing > 0:
            raise Damaged(f"{self.path} is truncated: {missing:,} bytes are missing")
        payload = self._file.read(expected)
        if missing < 0 or hashlib.sha256(payload).hexdigest() != self._sum:
            raise Damaged(f"{self.path} is damaged: its arrays are not what was written")
        try:
            arrays = load(len(self._head).to_bytes(8, "little") + self._head + payload)
        except SafetensorError as error:
            raise Damaged(f"{self.path} is damaged: {error}") from None
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise Damaged(f"{self.path}: {name} holds numbers that are not finite")
        # NumPy's arrays stay NumPy's: as JAX's they would lose half of their 64 bits
        found = [
            arrays[name] if isinstance(leaf, np.ndarray) else jax.device_put(arrays[name])
            for name, (_, leaf) in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, found)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SavedTree]:
    """Open a file of `save_tree`. It stays the same one even if it is replaced meanwhile.

    Raises:
        Damaged: it is missing, truncated, damaged, foreign, or of another version's format.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(regular(path))
            size = os.fstat(file.fileno()).st_size
            head = _head(path, file, size)
        except FileNotFoundError:
            raise Damaged(f"there is no {path.name} in {path.parent}") from None
        except OSError as error:
            # a file that may not be read now may be whole
            kind = UsageError if error.errno in UNREADABLE else Damaged
            raise kind(f"cannot read {path}: {error.strerror}") from None
        yield _described(path, file, head)


def _head(path: Path, file: BinaryIO, size: int) -> bytes:
    """The JSON at the beginning of a file, of which no more is read than that."""
    length = int.from_bytes(file.read(8), "little")
    beginning = file.read(len(BEGINNING))
    if not BEGINNING.startswith(beginning):
        raise Damaged(
            f"{path} was not written by this program, or by a version that wrote less than format "
            f"{FORMAT}: train anew, or read it with that version"
        )
    if length > LONGEST_HEAD or (length < len(beginning) and size > 8):
        raise Damaged(f"{path} is damaged: its head would have {length:,} bytes")
    if size < 8 + length or not beginning:
        raise Damaged(f"{path} is truncated: it ends after {size:,} bytes, within its head")
    return beginning + file.read(length - len(beginning))


def _described(path: Path, file: BinaryIO, head: bytes) -> SavedTree:
    """What the head of a file says, once it is known to be what was written."""
    damaged = Damaged(f"{path} is damaged: its head is not what was written")
    start = len(BEGINNING) + len(HEAD_SUM)
    told_sum = head[start : start + len(NO_SUM)]
    blank = head[:start] + NO_SUM.encode() + head[start + len(NO_SUM) :]
    if hashlib.sha256(blank).hexdigest().encode() != told_sum:
        raise damaged
    try:
        whole = parsed(head)
        told = parsed(whole.pop("__metadata__")["dynasac"].encode())
        written, description, of_arrays = told["format"], told["description"], told["arrays"]
        entries = {
            name: (np.dtype(DTYPES[entry["dtype"]]), [int(n) for n in entry["shape"]])
            for name, entry in whole.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if not isinstance(description, dict):
        raise damaged
    if written != FORMAT:
        newer = isinstance(written, int) and written > FORMAT
        hint = "install the version that wrote it, or a later one" if newer else "train anew"
        raise Damaged(f"{path} has format {written!r}; this version reads {FORMAT}: {hint}")
    return SavedTree(path, description, file, head, entries, of_arrays)


def _said(array: tuple[np.dtype, list[int]]) -> str:
    return f"{array[0]}{array[1]}"


UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

NUMBERED = re.compile(r"state-(\d{8})\.safetensors")
KEPT = 2


def save_numbered(folder: Path, tree: Any, description: dict[str, Any]) -> None:
    """Write the next checkpoint of a folder, of which the last two are kept."""
    before = numbered(folder)
    following = int(before[0].name[6:14]) + 1 if before else 1
    save_tree(folder / f"state-{following:08d}.safetensors", tree, description)
    for path in before[KEPT - 1 :]:
        path.unlink()


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if NUMBERED.fullmatch(path.name)), reverse=True)
