"""What a run survives: SIGKILL at random moments, damaged files, and a million updates.

Kills: trainings of Pendulum-v1 whose model is wrong, so that it is identified on the way, are
killed at random moments and gone on with, again and again until they are through; every other one
keeps what it has collected of an episode too. The end has to be byte for byte that of a training
that nobody disturbed, but for what tells the time. What the process was doing when it was killed is
read from a file that it writes into, which outlives it.

Damage: of a checkpoint, one bit flipped or the end cut off at random places, and files that are
foreign, of a future version or of other dtypes; each has to be told for what it is, and the
checkpoint before it gone on from.

Misbehaving environments: `misbehaving.py`. Hostile files: the fuzz tests, and what they count.

Soak: 2,000 real episodes of 20 steps with 500 updates after each, in one run directory.
"""

import collections
import csv
import dataclasses
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np

from dynasac import DynaSAC, PlanningConfig, SACConfig, checkpoint, presets, recording, runs

from . import misbehaving, report

PHASES = ("start", "collect", "adapt", "plan", "evaluate", "save")
KILLS, SIDE_BY_SIDE = 200, 2
FLIPS, CUTS = 2000, 500
MOMENTS = 10
EPISODES, UPDATES = 2000, 500

TRAIN = [
    "train",
    "Pendulum-v1",
    "--model=benchmarks/worlds.py:HeavyPendulum",
    "--real-episodes=2",
    "--planning.first-updates=512",
    "--planning.updates=256",
    "--updates-per-real-step=1",
    "--evaluation-episodes=10",
    "--replay-capacity=2000",
]
KINDS = ([], ["--checkpoint-every-steps=20"])
TOLD = 20
"""bytes of the file that a training tells in what it is doing"""


def run(quick: bool) -> dict:
    soaked = soak(20 if quick else EPISODES)
    kills = killed(6 if quick else KILLS)
    damage = damaged(40 if quick else FLIPS, 20 if quick else CUTS)
    hostile = fuzzed("json" if quick else "")
    strange = misbehaving.tried(1 if quick else MOMENTS)
    lost = kills["runs"] - kills["runs_with_identical_bytes"]
    untold = damage["tried"] - damage["told_apart"]
    let_in = hostile["tests"] - hostile["passed"]
    amiss = strange["tried"] - strange["as_expected"]
    found = {
        "kills": kills,
        "damaged_files": damage,
        "hostile_files": hostile,
        "misbehaving": strange,
        "soak": soaked,
    }
    print("\n".join(table(found)))
    return {
        **found,
        "targets": [
            report.target("SIGKILLs", kills["kills"], KILLS, KILLS, True),
            report.target("phases hit, of six", len(kills["by_phase"]), 6, 6, True),
            report.target("runs that did not end in identical bytes", lost, 0, 0, False),
            report.target("damaged files not told for what they are", untold, 0, 0, False),
            report.target("hostile files tried", hostile["inputs"], 100_000, 100_000, True),
            report.target("loaders that let one in, crashed or hung", let_in, 0, 0, False),
            report.target("misbehaving environments that cost a step", amiss, 0, 0, False),
            report.target("programs compiled in the soak", soaked["compiled"], 0, 0, False),
            report.target("growth of memory in the soak, MB", soaked["growth_mb"], 30, 10, False),
            report.target(
                "last tenth of the soak over the second", soaked["slower"], 1.3, 1.1, False
            ),
        ],
    }


def table(found: dict[str, Any]) -> list[str]:
    """All of it in Markdown, for docs/reliability.md."""
    kills, hostile, soaked = found["kills"], found["hostile_files"], found["soak"]
    phases = ", ".join(f"{name} {count}" for name, count in kills["by_phase"].items())
    same, runs = kills["runs_with_identical_bytes"], kills["runs"]
    rows = [
        ("**SIGKILL**, then `--resume`", "", ""),
        (
            f"at a random moment ({phases})",
            f"{kills['kills']:,}",
            f"{same:,} of {runs:,} runs ended in identical bytes",
        ),
        ("**Checkpoints**", "", ""),
        *(
            (kind, f"{each['tried']:,}", f"{each['told']:,} told, the one before gone on from")
            for kind, each in found["damaged_files"]["by_kind"].items()
        ),
        ("**Hostile files**", "", ""),
        *(
            (f"loader of: {loader}", f"{count:,}", "")
            for loader, count in hostile["by_loader"].items()
        ),
        (
            "all of these",
            f"{hostile['inputs']:,}",
            f"{hostile['refused']:,} refused in one line, the others read; "
            f"{hostile['tests'] - hostile['passed']} crashes, hangs or blow-ups",
        ),
        ("**Environments that misbehave**", "", "nothing lost, and"),
        *(
            (
                each["way"],
                f"{each['tried']:,}",
                f"{each['right']:,} {each['expected']}, nothing lost",
            )
            for each in found["misbehaving"]["ways"]
        ),
        ("**A long run**", "", ""),
        (
            "updates, in as many real episodes",
            f"{soaked['updates']:,}, {soaked['real_episodes']:,}",
            f"{soaked['growth_mb']:+.1f} MB of memory, {soaked['compiled']:.3g} s of compiling, "
            f"{soaked['growth_of_other_files_kb']:+.1f} kB of files but the metrics, after the "
            f"first tenth; the last tenth took {soaked['slower']:.2f} of the second's time",
        ),
    ]
    return [
        "| tried | how often | what came of it |",
        "| --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def killed(wanted: int) -> dict:
    """Kill trainings until `wanted` of them were killed; see what became of each run."""
    rng, by_phase = random.Random(0), collections.Counter()
    finished, same, started = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = [folder / f"whole-{kind}" for kind in range(len(KINDS))]
        for kind, directory in enumerate(whole):
            assert _start(directory, kind).wait() == 0
        looks = max(_doing(directory)[1] for directory in whole)
        going: dict[Path, Child | None] = {}
        while sum(by_phase.values()) < wanted or going:
            while len(going) < SIDE_BY_SIDE and sum(by_phase.values()) < wanted:
                going[folder / f"run-{started}"] = None
                started += 1
            for directory, child in list(going.items()):
                kind = int(directory.name.partition("-")[2]) % len(KINDS)
                if child is None:
                    process = _start(directory, kind)
                    # rather earlier than later, since a run that is gone on with has less before it
                    look = rng.randrange(1 + rng.randrange(looks))
                    going[directory] = Child(process, look, rng.uniform(0, 0.3))
                    continue
                ended = child.process.poll()
                if ended is not None:
                    assert ended == 0, f"{directory} ended with {ended}"
                    finished += 1
                    same += _same(directory, whole[kind])
                    del going[directory]
                    continue
                if _doing(directory)[1] < child.look or sum(by_phase.values()) >= wanted:
                    continue
                if child.since is None:
                    going[directory] = child._replace(since=time.monotonic())
                elif time.monotonic() - child.since > child.delay:
                    child.process.send_signal(signal.SIGKILL)
                    if child.process.wait() == -signal.SIGKILL:
                        by_phase[_doing(directory)[0]] += 1
                        going[directory] = None
            time.sleep(0.002)
    print(f"  {sum(by_phase.values())} kills, {same} of {finished} runs with identical bytes")
    return {
        "kills": sum(by_phase.values()),
        "by_phase": {phase: by_phase[phase] for phase in PHASES if by_phase[phase]},
        "runs": finished,
        "runs_with_identical_bytes": same,
        "commands": [" ".join(["dynasac", *TRAIN, *kind]) for kind in KINDS],
    }


class Child(NamedTuple):
    """A training that is to be killed some seconds after it has told so often what it does."""

    process: subprocess.Popen
    look: int
    delay: float
    since: float | None = None
    """when it had told that"""


def _start(directory: Path, kind: int) -> subprocess.Popen:
    """A training that tells in a file what it is doing; one that was killed is gone on with."""
    begun = (directory / "config.json").exists()
    options = ["train", "--resume", TRAIN[2]] if begun else [*TRAIN, *KINDS[kind]]
    _told(directory).write_text("start 0".ljust(TOLD))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.reliability", str(_told(directory))),
            *(*options, f"--output={directory}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _told(directory: Path) -> Path:
    return directory.with_suffix(".doing")


def _doing(directory: Path) -> tuple[str, int]:
    """What a training does, and how often it has told so."""
    phase, looks = _told(directory).read_text().split()
    return phase, int(looks)


def _same(ours: Path, theirs: Path) -> bool:
    """Whether two runs ended in the same bytes, but for what tells the time."""

    def rows(directory: Path) -> list[dict]:
        with (directory / "metrics.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in found]

    def content(directory: Path) -> list[bytes]:
        newest, *_ = checkpoint.numbered(directory / "checkpoints")
        return [
            newest.read_bytes(),
            *(p.read_bytes() for p in sorted((directory / "policy").iterdir())),
        ]

    return rows(ours) == rows(theirs) and content(ours) == content(theirs)


def damaged(flips: int, cuts: int) -> dict:
    """Damage a checkpoint, and see whether it is told and the one before it is gone on from."""
    config = dataclasses.replace(presets.DEFAULT, replay_capacity=500)
    agent = DynaSAC("Pendulum-v1", config=config)
    rng = np.random.default_rng(0)
    told: dict[str, list[bool]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        agent.save_checkpoint(Path(folder))
        agent.save_checkpoint(Path(folder))
        newest, before = checkpoint.numbered(Path(folder))
        whole = newest.read_bytes()

        def tried(kind: str, content: bytes, said: str) -> None:
            newest.write_bytes(content)
            sentences = agent.load_checkpoint(Path(folder))
            aside = newest.with_name(f"{newest.name}.damaged")
            right = len(sentences) == 1 and said in sentences[0] and before.name in sentences[0]
            told[kind].append(right and aside.exists())
            aside.unlink(missing_ok=True)

        for bit in rng.integers(0, 8 * len(whole), flips):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << int(bit) % 8
            tried("bit flipped", bytes(flipped), newest.name)
        for length in rng.integers(0, len(whole), cuts):
            tried("truncated", whole[:length], "is truncated")
        for foreign in (b"PK\x03\x04" * 50, b"\x80\x04" * 99, os.urandom(5000), b"\x89HDF" * 9):
            tried("foreign", foreign, "was not written by this program")
        with checkpoint.opened(before) as saved:
            description = saved.description
        from safetensors.numpy import load

        arrays = load(whole)
        ours, path = checkpoint.FORMAT, Path(folder) / "other"
        for later in range(ours + 1, ours + 20):
            checkpoint.FORMAT = later
            checkpoint.save_arrays(path, arrays, description)
            checkpoint.FORMAT = ours
            tried("of a future version", path.read_bytes(), f"has format {later}")
        for name, array in arrays.items():
            other = np.float64 if array.dtype == np.float32 else np.float32
            checkpoint.save_arrays(path, {**arrays, name: array.astype(other)}, description)
            tried("of another dtype", path.read_bytes(), f"{name} is float")
    counts = {kind: {"tried": len(each), "told": sum(each)} for kind, each in told.items()}
    print(f"  {counts}")
    return {
        "tried": sum(each["tried"] for each in counts.values()),
        "told_apart": sum(each["told"] for each in counts.values()),
        "by_kind": counts,
    }


def fuzzed(which: str) -> dict:
    """Run the fuzz tests, of one loader or all, and add up the inputs that they tried."""
    tests = Path(__file__).parents[1] / "tests" / "test_fuzz.py"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        pytest = [sys.executable, "-m", "pytest", str(tests), "-q", f"--junitxml={results}"]
        options = ["-k", which, "-o", "junit_family=xunit1"]  # which has properties
        subprocess.run([*pytest, *options], stdout=subprocess.DEVNULL, check=False)
        cases = list(ElementTree.parse(results).iter("testcase"))
    wrong = [case for case in cases if any(case.find(k) is not None for k in ("failure", "error"))]
    by_loader: dict[str, int] = collections.Counter()
    refused = 0
    for case in cases:
        told = {each.get("name"): each.get("value") for each in case.iter("property")}
        if case not in wrong and "inputs" in told:
            by_loader[str(told["loader"])] += int(str(told["inputs"]))
            refused += int(str(told["refused"]))
    found = {
        "tests": len(cases),
        "passed": len(cases) - len(wrong),
        "inputs": sum(by_loader.values()),
        "refused": refused,
        "by_loader": dict(by_loader),
    }
    print(f"  {found}")
    return found


def soak(episodes: int) -> dict:
    """One long training with a run directory, looked at every twentieth of the way."""
    config = dataclasses.replace(
        presets.DEFAULT,
        sac=SACConfig(hidden=(16, 16), batch_size=32),
        planning=PlanningConfig(first_updates=UPDATES, updates=UPDATES, improvement_states=16),
        adapt="none",
        real_episodes=episodes,
        replay_capacity=2000,
    )
    agent = DynaSAC(gym.make("Pendulum-v1", max_episode_steps=20), config=config)
    clock = runs.CompileClock()
    looks: list[dict[str, Any]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        kept = ("metrics.csv", "events")

        def look(agent: DynaSAC, row: dict[str, Any]) -> None:
            if row["real_episodes"] % max(1, episodes // 20) == 0:
                files = [p for p in directory.rglob("*") if p.is_file()]
                looks.append(
                    {
                        "real_episodes": row["real_episodes"],
                        "updates": row["gradient_updates"],
                        "seconds": time.monotonic() - started,
                        "resident_mb": _resident_mb(),
                        "compile_seconds": clock.seconds,
                        "other_files_kb": sum(
                            p.stat().st_size for p in files if not p.name.startswith(kept)
                        )
                        / 1e3,
                    }
                )

        run = runs.Run.create(directory, recording.asked_for(agent, "auto", "default"))
        recorder = recording.Recorder(agent, run, episodes=1)
        agent.learn(observer=recorder, callback=look)
        run.close()
    second, last = looks[2], looks[-1]
    lap = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(looks)]
    print(f"  {last}")
    return {
        "updates": last["updates"],
        "real_episodes": last["real_episodes"],
        "looks": looks,
        "compiled": round(last["compile_seconds"] - second["compile_seconds"], 3),
        "growth_mb": last["resident_mb"] - second["resident_mb"],
        "growth_of_other_files_kb": last["other_files_kb"] - second["other_files_kb"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "slower": sum(lap[-2:]) / sum(lap[2:4]),
    }


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watched(phase_file: str, arguments: list[str]) -> int:
    """The command line, which writes down what it is doing."""
    from dynasac import cli
    from dynasac.cli import start

    handle, looks = os.open(phase_file, os.O_WRONLY), itertools.count(1)

    def doing(phase: str) -> None:
        os.pwrite(handle, f"{phase} {next(looks)}".ljust(TOLD).encode(), 0)

    def told(kind: type, name: str, phase) -> None:
        method = getattr(kind, name)

        def wrapped(self, *given, **named):
            doing(phase(*given))
            return method(self, *given, **named)

        setattr(kind, name, wrapped)

    start.configure()
    told(recording.Recorder, "progress", lambda state, phase: phase)
    told(recording.Recorder, "_evaluate", lambda *_: "evaluate")
    told(recording.Recorder, "save", lambda *_: "save")
    told(recording.Recorder, "_save_checkpoint", lambda *_: "save")
    return cli.run(arguments)


if __name__ == "__main__":
    sys.exit(watched(sys.argv[1], sys.argv[2:]))
