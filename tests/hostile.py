"""Files as who means harm, or a failing disk, would leave them: mutations of whole ones."""

import contextlib
import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np

from dynasac import checkpoint

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    7.5,
    2**31,
    2**63,
    10**400,
    -(10**18),
    1e308,
    5e-324,
    float("nan"),
    float("-inf"),
    "",
    "none",
    "\ud800\x00\n\x1b[2J",
    "../../etc/passwd",
    "evil.py:Evil",
    "__import__('os').system('false')",
    "x" * 3000,
    [],
    [1, [2]],
    {},
    {"__class__": "os"},
)
"""what a value of JSON is replaced by"""

LITERALS = (b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 400, b'"\\ud800"')
"""what a piece of a text of JSON is replaced by"""


def bytes_of(content: bytes, rng: np.random.Generator) -> bytes:
    """Flipped, cut off, left out, repeated or put elsewhere: one to three times."""
    for _ in range(rng.integers(1, 4)):
        if not content:
            return bytes(rng.integers(0, 256, 9, np.uint8))
        start, stop = np.sort(rng.integers(0, len(content) + 1, 2))
        block = content[start : min(stop, start + 200)]
        match rng.integers(7):
            case 0:
                changed = bytearray(content)
                for index in rng.integers(0, len(content), rng.integers(1, 9)):
                    changed[index] ^= 1 << rng.integers(8)
                content = bytes(changed)
            case 1:
                content = content[:start]
            case 2:
                content = content[:start] + content[start + len(block) :]
            case 3:
                content = content[:start] + block * int(rng.integers(2, 20)) + content[start:]
            case 4:
                content = content[stop:] + content[:stop]
            case 5:
                content = (
                    content[:start] + bytes(rng.integers(0, 256, 8, np.uint8)) + content[stop:]
                )
            case _:
                literal = LITERALS[rng.integers(len(LITERALS))]
                content = content[:start] + literal + content[start + 1 :]
    return content


def value_of(content: Any, rng: np.random.Generator) -> Any:
    """The same JSON with something replaced, left out, nested, renamed or added somewhere."""
    if isinstance(content, dict | list) and content and rng.random() < 0.85:
        copy = content.copy()
        key = list(copy)[rng.integers(len(copy))] if isinstance(copy, dict) else 0
        if isinstance(copy, list):
            key = int(rng.integers(len(copy)))
        match rng.integers(12):
            case 0:
                del copy[key]
            case 1:
                name = str(STRANGE[rng.integers(len(STRANGE))])[:50]
                if isinstance(copy, dict):
                    copy[name] = copy.pop(key)
                else:
                    copy *= 3
            case 2:
                for _ in range(rng.integers(1, 60)):
                    copy[key] = [copy[key]]
            case _:
                copy[key] = value_of(copy[key], rng)
        return copy
    return STRANGE[rng.integers(len(STRANGE))]


def json_of(content: Any, rng: np.random.Generator) -> bytes:
    """Damaged as JSON, and now and then as bytes too."""
    written = json.dumps(value_of(content, rng)).encode()
    return bytes_of(written, rng) if rng.random() < 0.2 else written


def forged(path: Path, told: Any, entries: bytes, payload: bytes = b"") -> None:
    """A file of `checkpoint.save_tree` whose checksums are right, as who means harm writes it."""
    sums = {"head": checkpoint.NO_SUM, "arrays": hashlib.sha256(payload).hexdigest()}
    text = json.dumps({**sums, "format": checkpoint.FORMAT, "description": told})
    blank = b'{"__metadata__":{"dynasac":' + json.dumps(text).encode() + b"}" + entries + b"}"
    told_sum = hashlib.sha256(blank).hexdigest().encode()
    whole = blank.replace(checkpoint.NO_SUM.encode(), told_sum, 1)
    path.write_bytes(len(whole).to_bytes(8, "little") + whole + payload)


@contextlib.contextmanager
def bounded(seconds: float, megabytes: int):
    """What is done within takes no longer, and at its peak no more memory than before."""

    def late(*_):
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    held = kilobytes("VmRSS")
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert kilobytes("VmHWM") - held < 1000 * megabytes


def kilobytes(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
