"""`dynasac export`."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .start import configure


@dataclass(frozen=True)
class Export:
    """Write a trained policy as a file that runs without dynasac, once it acts as the policy."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """run directory"""
    format: Literal["onnx", "numpy"] = "onnx"
    """onnx: for any ONNX runtime; numpy: an .npz of arrays, and a .py beside it that runs it"""
    output: Path | None = None
    """file to write; policy.onnx or policy.npz in the run directory if not given"""
    env: str | None = None
    """MODULE:ID, for a run whose environment does not come with Gymnasium"""

    def run(self) -> int:
        configure()
        from .. import export, recording

        agent, _ = recording.load_run(self.directory, self.env)
        suffix, write = {
            "onnx": (".onnx", export.to_onnx),
            "numpy": (".npz", export.to_numpy),
        }[self.format]
        with contextlib.closing(agent):
            written = write(agent, self.output or self.directory / f"policy{suffix}")
        print(
            f"{' and '.join(map(str, written.files))}: the policy for {agent.env_id}\n"
            f"  differs from the original by {written.difference:.1e} of half the action range at "
            f"most, on {export.TRIED:,} observations"
        )
        return 0
