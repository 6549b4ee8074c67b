"""`dynasac completion`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Completion:
    """Print a shell's completion script, as in: dynasac completion bash > ~/.dynasac-completion"""

    shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional]
    """of which shell"""

    def run(self) -> int:
        from .parse import parse

        parse(["--tyro-print-completion", self.shell])
        return 0
