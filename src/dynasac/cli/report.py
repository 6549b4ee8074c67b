"""`dynasac report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .start import configure


@dataclass(frozen=True)
class Report:
    """Write one HTML page about runs, comparisons and sweeps, to be opened in a browser."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories, finished or not, or those of comparisons or sweeps"""
    output: Path | None = None
    """file to write; DIR/report.html if not given, report.html here for several directories"""
    env: str | None = None
    """MODULE:ID, for a run whose environment does not come with Gymnasium"""
    model: str | None = None
    """FILE.py:Class, for maps of a policy that was planned in a model of your own"""

    def run(self) -> int:
        configure()
        from .. import report

        written = report.write_report(self.directories, self.output, self.env, self.model)
        print(f"wrote {written.path} ({written.bytes / 1e6:.1f} MB)")
        for sentence in written.missing:
            print(f"  {sentence}")
        return 0
