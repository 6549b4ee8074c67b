"""The command line: parsing, and what people read. Everything it does, the Python API does.

One module for each command. `dynasac` alone and `--version` answer without them.
"""

import importlib.metadata
import os
import sys

WELCOME = """dynasac: tell it the physics you know; it trains the controller.

  dynasac train Pendulum-v1                             plan from known physics, without a real step
  dynasac train MODULE:ID --model FILE.py:Class         an environment and a model of your own
  dynasac check-model MODULE:ID --model FILE.py:Class   is the model right?

  dynasac evaluate runs/Pendulum-v1                     what the trained policy is worth
  dynasac report runs/Pendulum-v1                       everything about the run on one page
  dynasac compare Pendulum-v1                           against plain SAC and stable-baselines3
  dynasac sweep Pendulum-v1 --set NAME=VALUE,VALUE      settings × seeds, or a search with Optuna

  dynasac envs                                          what comes with built-in physics
  dynasac --help                                        all commands; COMMAND --help for one
"""


def main() -> None:
    """The `dynasac` command: exits with 0, with 1 and a line that says what to do, or with 130."""
    if len(sys.argv) == 1:
        print(WELCOME, end="")
        return
    if sys.argv[1:] == ["--version"]:
        print(f"dynasac {importlib.metadata.version('dynasac')}")
        return
    from ..errors import UsageError

    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except UsageError as error:
        print(f"dynasac: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("dynasac: stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of a pipe has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"dynasac: {error.strerror or error}{where}", file=sys.stderr)
        code = 1
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Parse and carry out one command; returns the exit code."""
    from .parse import parse
    from .start import look_here

    command = parse(arguments)
    named = [getattr(command, option, None) or "" for option in ("env", "model")]
    if any(":" in name for name in named):  # MODULE:ID or FILE.py:Class, which may import others
        look_here()
    return command.run()
