"""`dynasac record`."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import UsageError
from .start import configure


@dataclass(frozen=True)
class Record:
    """Make a video and a GIF of a trained policy, without a display."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """run directory"""
    episodes: int = 3
    """how many; episode k starts from reset(seed=SEED+k)"""
    seed: int = 10_000
    """of the first episode"""
    lookahead: Literal[0, 1] = 0
    """1: look one step ahead through the model at each decision"""
    output: Path | None = None
    """the files' name without .mp4 and .gif; DIR/video if not given"""
    env: str | None = None
    """MODULE:ID, for a run whose environment does not come with Gymnasium"""
    model: str | None = None
    """FILE.py:Class, for lookahead through a model of your own"""

    def run(self) -> int:
        if self.episodes < 1:
            raise UsageError("--episodes: at least 1")
        if self.seed < 0:
            raise UsageError("--seed: at least 0")
        configure()
        from .. import recording, video

        agent, _ = recording.load_run(self.directory, self.env, self.model, self.lookahead)
        stem = self.output or self.directory / "video"
        if self.output and self.output.is_dir():
            raise UsageError(f"--output {self.output} is a directory: name a file in it")
        if stem.suffix in (".mp4", ".gif"):
            stem = stem.with_suffix("")
        with contextlib.closing(agent):
            made = video.record(agent, stem, self.episodes, self.seed, self.lookahead, print)
        if not made.drawn:
            print(f"{agent.env_id} does not draw itself: these are traces of its numbers")
        for path in (made.mp4, made.gif):
            print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
        print(f"  {made.seconds:.0f} s at {made.fps:.0f} frames a second")
        return 0
