"""Run benchmarks: `python -m benchmarks [part ...] [--quick]`; results go to benchmarks/results."""

import argparse
import os
import subprocess
import sys

from dynasac.cli.start import use_cores

from . import report

PARTS = {
    "optimum": "the best return there can be, by dynamic programming",
    "defaults": "default settings chosen by a sweep over two tasks",
    "expansion": "how many steps a target has by default",
    "quality": "what the trained policies are worth",
    "wall": "wall time and memory of one cold training",
    "time_to_regret": "seconds of computing to a regret of 20",
    "seeds": "several seeds in one process against one",
    "throughput": "gradient updates a second",
    "synthetic": "synthetic transitions a second",
    "model_free": "plain SAC against stable-baselines3",
    "sb3_dyna": "stable-baselines3's SAC with our planning",
    "parameters": "a model with wrong parameters",
    "noise": "a model with wrong parameters, noisy observations",
    "friction": "a model without the friction that there is",
    "unlimited": "the same without a limit of speed (PhIHP's variant)",
    "no_physics": "Pendulum-v1 without physics",
    "car": "MountainCarContinuous-v0 without physics",
    "harmful": "a model whose torque has the wrong sign",
    "simulators": "planning in MuJoCo's simulators",
    "balance": "InvertedPendulum-v5 without physics",
    "hopper": "Hopper-v5 with a simulator that is 20% too heavy",
    "sweep": "sweeps: what handing out trainings costs, and two workers against one",
    "scale": "what many runs cost, and what that predicts of more",
    "rigs": "real episodes from several slow environments at once",
    "reliability": "what a run survives: kills, damaged files, a million updates",
    "ray_faults": "trainings through Ray whose workers are killed",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(f"  {name:15} {what}" for name, what in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="*", help="one of those below; all of them if none is named")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to see that everything runs; the numbers mean nothing",
    )
    arguments = parser.parse_args()
    parts = arguments.part or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if len(parts) == 1:
        return run(parts[0], arguments.quick)
    quick = ["--quick"] if arguments.quick else []
    # a process each, so that no part is slowed down by what another one left behind
    commands = [[sys.executable, "-m", "benchmarks", part, *quick] for part in parts]
    return max(subprocess.run(command).returncode for command in commands)


def run(part: str, quick: bool) -> int:
    """Run one part in this process and write its result, or its error."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    use_cores()
    print(f"== {part}: {PARTS[part]}", flush=True)
    result = report.measured(part, PARTS[part], quick)
    report.write(result)
    report.write_table(quick)
    for line in report.lines(result):
        print("  " + line)
    return 1 if result["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
