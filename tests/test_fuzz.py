"""Every loader, on more than 100,000 damaged files: each is read, or refused in one line."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import gymnasium as gym
import hostile
import jax
import jax.numpy as jnp
import jaxtyping
import minari
import numpy as np
import probes
import pytest
from conftest import SMALL, beside_tests, redescribed, untrained_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dynasac import DynaSAC, UsageError, checkpoint, datasets, presets, recording, report, runs
from dynasac.adapt import ladder
from dynasac.comparison import Design, agents, claim, results
from dynasac.report import directories
from dynasac.spaces import spaces_of

PIECES = {
    "arrays": (10, 2500),
    "heads": (10, 1500),
    "json": (10, 2000),
    "settings": (10, 1500),
    "adaptation": (5, 2000),
    "metrics": (5, 2000),
    "run": (5, 700),
    "report": (5, 200),
    "results": (5, 300),
    "asked": (5, 500),
    "table": (5, 600),
    "minari": (2, 100),
    "agent": (2, 150),
}
"""of each loader: how many pieces, and how many inputs in each"""

SECONDS, MEGABYTES = 60.0, 300
"""that a piece may take, and more than there were before it"""


@pytest.fixture(autouse=True)
def _no_types_are_checked():
    """As in users' programs, where nothing but a loader refuses what it must."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def tmp_path():
    """In memory where there is such a file system: a hundred thousand files are written."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def test_there_are_enough_inputs():
    assert sum(pieces * inputs for pieces, inputs in PIECES.values()) >= 100_000


def pieces(loader: str):
    count = PIECES[loader][0]
    return pytest.mark.parametrize("seed", range(count), ids=[f"piece{i}" for i in range(count)])


@pytest.fixture
def fuzz(record_property):
    """Tries a loader; how often is in the report that pytest may write."""

    def tried(loader: str, seed: int, attempt) -> None:
        refused = try_all(loader, seed, attempt)
        record_property("loader", loader)
        record_property("inputs", PIECES[loader][1])
        record_property("refused", refused)

    return tried


def try_all(loader: str, seed: int, attempt) -> int:
    """Call `attempt` with a generator for each input of a piece; how many were refused."""
    refused = []
    with hostile.bounded(SECONDS, MEGABYTES):
        for index in range(PIECES[loader][1]):
            try:
                attempt(np.random.default_rng((seed, index)))
            except UsageError as error:
                refused.append(str(error))
    assert all(said.isprintable() for said in refused)
    assert refused
    return len(refused)


# --- checkpoints

RAIL = spaces_of(gym.make("Rail-v0"))
TREE = {"matrix": jnp.arange(6.0).reshape(2, 3), "count": np.int64(7), "flag": jnp.asarray(True)}
DESCRIPTION = {"env_id": "Rail-v0", "sizes": [1, 1], "config": {"hidden": [8, 8]}}


def tree(path: Path):
    with checkpoint.opened(path) as saved:
        return saved.tree(TREE)


@pieces("arrays")
def test_bytes_of_a_checkpoint(fuzz, seed, tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save_tree(path, TREE, DESCRIPTION)
    content = path.read_bytes()

    def attempt(rng):
        damaged = hostile.bytes_of(content, rng)
        path.write_bytes(damaged)
        tree(path)
        assert damaged == content

    fuzz("arrays", seed, attempt)


@pieces("heads")
def test_heads_whose_checksums_are_right(fuzz, seed, tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save_tree(path, TREE, DESCRIPTION)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    del entries["__metadata__"]
    payload = content[8 + size :]

    def attempt(rng):
        told = hostile.value_of(DESCRIPTION, rng) if rng.random() < 0.5 else DESCRIPTION
        head = hostile.json_of(entries, rng)[1:-1]
        data = hostile.bytes_of(payload, rng) if rng.random() < 0.3 else payload
        hostile.forged(path, told, b"," + head, data)
        jax.tree.map(np.asarray, tree(path))

    fuzz("heads", seed, attempt)


@pieces("json")
def test_json(fuzz, seed, tmp_path):
    path = tmp_path / "config.json"
    content = {"env_id": "Rail-v0", "seed": 0, "settings": runs.plain(SMALL)}
    written = json.dumps(content).encode()

    def attempt(rng):
        path.write_bytes(hostile.bytes_of(written, rng))
        found = checkpoint.read_json(path)
        json.dumps(found, allow_nan=False)
        runs.flat(found)

    fuzz("json", seed, attempt)


def whole(content: bytes):
    """JSON as `read_json` reads it."""
    try:
        return checkpoint.parsed(content)
    except (ValueError, RecursionError):
        raise UsageError("damaged") from None


@pieces("settings")
def test_settings(fuzz, seed):
    content = json.loads(json.dumps(runs.plain(presets.PRESETS["default"])))

    def attempt(rng):
        presets.check(presets.from_plain(whole(hostile.json_of(content, rng))))

    fuzz("settings", seed, attempt)


@pytest.fixture(scope="module")
def rail() -> DynaSAC:
    return DynaSAC("Rail-v0", probes.Slide(), SMALL)


@pieces("adaptation")
def test_descriptions_of_what_was_learned(fuzz, seed, rail):
    parameter = {"name": "speed", "before": 0.5, "after": 0.6, "standard_error": None}
    state = ladder.described(rail.state.adaptation)
    content = {**state, "rung": "identified", "parameters": [parameter], "errors": {"exact": 0.1}}
    config = rail.config

    def attempt(rng):
        told = whole(hostile.json_of(content, rng))
        if not isinstance(told, dict):
            raise UsageError("refused by what opens it")
        found = ladder.template(told, probes.Slide(), rail.spaces, config.planning, config.ensemble)
        json.dumps(ladder.described(found), allow_nan=False)

    fuzz("adaptation", seed, attempt)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(), each, max_size=4),
)
"""what a file of JSON may hold"""
SETTING = st.sampled_from([*runs.flat(runs.plain(SMALL)), "sac", "planning.starts"])


def nested(names: dict[str, object]) -> dict:
    """Dotted names as groups of settings."""
    found: dict = {}
    for name, value in names.items():
        *groups, last = name.split(".")
        at = found
        for group in groups:
            at = at.setdefault(group, {}) if isinstance(at, dict) else {}
        if isinstance(at, dict):
            at[last] = value
    return found


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.dictionaries(SETTING, JSON, max_size=3))
def test_settings_of_any_value(found):
    written = json.dumps(nested(found)).encode()
    with contextlib.suppress(UsageError):
        presets.check(presets.from_plain(whole(written)))


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=300))
def test_files_of_any_bytes(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    for read in (
        lambda: checkpoint.read_json(path),
        lambda: tree(path),
        lambda: runs.read_metrics(tmp_path),
        lambda: datasets.read(path, RAIL),
    ):
        with contextlib.suppress(UsageError):
            read()


# --- run directories

ROWS = [
    {
        **dict.fromkeys(runs.METRICS, 1.5),
        "real_episodes": count,
        "real_steps": 10 * count,
        "adapt_rung": "exact",
        "decision": 'error on 20 real transitions: "the model", 3%',
    }
    for count in range(3)
]


@pytest.fixture
def metrics(tmp_path) -> bytes:
    runs.write_metrics(tmp_path, ROWS)
    return (tmp_path / "metrics.csv").read_bytes()


def cells_of(table: bytes, rng: np.random.Generator) -> bytes:
    """A table with other cells, rows or columns; now and then with other bytes."""
    if rng.random() < 0.4:
        return hostile.bytes_of(table, rng)
    rows = list(csv.reader(io.StringIO(table.decode())))
    for _ in range(rng.integers(1, 4)):
        row = rows[rng.integers(len(rows))]
        cell = str(hostile.STRANGE[rng.integers(len(hostile.STRANGE))])
        match rng.integers(4):
            case 0:
                rows.append(row[: rng.integers(len(row) + 1)])
            case 1:
                row.append(cell)
            case _ if row:
                row[rng.integers(len(row))] = cell
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode(errors="surrogatepass")


@pieces("metrics")
def test_metrics(fuzz, seed, tmp_path, metrics):
    def attempt(rng):
        (tmp_path / "metrics.csv").write_bytes(cells_of(metrics, rng))
        for row in runs.read_metrics(tmp_path):
            assert all(isinstance(cell, str) for cell in row.values())
            runs.measured(row, "real_steps")

    fuzz("metrics", seed, attempt)


@pytest.fixture
def untrained(tmp_path, rail, metrics) -> tuple[Path, dict]:
    directory = untrained_run(tmp_path / "run", rail, "ensemble")
    (directory / "metrics.csv").write_bytes(metrics)
    return directory, json.loads((directory / "config.json").read_text())


@pieces("run")
def test_runs(fuzz, seed, untrained, rail, monkeypatch):
    directory, asked = untrained
    asked = {**asked, "env_id": "Pendulum-v1"}
    # that is what `agent` below is about
    asked_for = []
    monkeypatch.setattr(DynaSAC, "load", lambda *told: asked_for.append(told) or rail)

    def attempt(rng):
        (directory / "config.json").write_bytes(hostile.json_of(asked, rng))
        recording.load_run(directory)
        assert asked_for.pop()[2] in ("auto", "ensemble", "none")

    fuzz("run", seed, attempt)


@pieces("report")
def test_reports_on_runs_and_comparisons(fuzz, seed, untrained, metrics):
    directory, asked = untrained
    other = directory.parent / "other"
    other.mkdir()
    summary = {"env_id": "Rail-v0", "gradient_updates": 3, "evaluation": {"mean_return": -1.0}}
    comparison = {"env_id": "Rail-v0", "agents": {"sac": {"runs": [], "iqm": {"value": 1.0}}}}

    def attempt(rng):
        (directory / "config.json").write_bytes(hostile.json_of(asked, rng))
        (directory / "summary.json").write_bytes(hostile.json_of(summary, rng))
        (directory / "metrics.csv").write_bytes(cells_of(metrics, rng))
        found = directories.gather(directory)
        assert isinstance(found, directories.RunData)
        directories.settings(found.asked)
        found.column("real_steps"), found.last("q_value")
        assert isinstance(found.env_id + found.baseline, str)
        assert isinstance(found.evaluation, dict)
        (other / "comparison.json").write_bytes(hostile.json_of(comparison, rng))
        both = directories.gather(other)
        assert isinstance(both, directories.ComparisonData)
        assert isinstance(both.env_id, str)
        assert all(isinstance(agent, dict) for agent in both.agents.values())

    fuzz("report", seed, attempt)


# --- comparisons


@pieces("results")
def test_what_came_of_a_training(fuzz, seed, untrained, metrics):
    directory, asked = untrained
    directory.joinpath("summary.json").write_text("{}")
    asked = {**asked, "machine": "a machine", "date": "2026-01-02", "packages": {"torch": "2"}}
    one = agents.Agent("sac", "plain", {}, 20)

    def attempt(rng):
        (directory / "config.json").write_bytes(hostile.json_of(asked, rng))
        (directory / "metrics.csv").write_bytes(cells_of(metrics, rng))
        ended = results.one_run(directory.parent, "run", 0, -1.0, {})
        if rng.random() < 0.02:
            results.summed_up(one, [ended])
        json.dumps(ended, allow_nan=False)
        if ended["error"] is not None:
            raise UsageError(ended["error"])

    fuzz("results", seed, attempt)


@pieces("asked")
def test_what_was_to_be_compared(fuzz, seed, tmp_path):
    design = Design("Rail-v0", ("sac",), seeds=1)
    contenders = [agents.agent("sac", design, 10)]
    claim(tmp_path, design, contenders)
    written = json.loads((tmp_path / "asked.json").read_text())

    def attempt(rng):
        (tmp_path / "asked.json").write_bytes(hostile.json_of(written, rng))
        assert {one.name for one in claim(tmp_path, design, contenders)} <= set(agents.NAMES)

    fuzz("asked", seed, attempt)


# --- data sets


@pieces("table")
def test_tables(fuzz, seed, tmp_path):
    header = "episode,time,observation_0,action_0,reward,terminated\n"
    lines = (
        f"{e},{t},{0.1 * t},{0.2 - e},1.5,{int(t == 2)}\n{e},3,0.3,,,\n"
        for e, t in itertools.product(range(2), range(3))
    )
    table = (header + "".join(lines)).encode()
    path = tmp_path / "log.csv"

    def attempt(rng):
        path.write_bytes(cells_of(table, rng))
        found = datasets.read(path, RAIL).transitions
        assert all(np.isfinite(field).all() for field in jax.tree.leaves(found))

    fuzz("table", seed, attempt)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """The folder of a Minari data set of two episodes of `Clock`."""
    root = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        warnings.simplefilter("ignore")  # Minari misses an author and leaves a folder behind
        collector = minari.DataCollector(gym.wrappers.TimeLimit(probes.Clock(4), 10))
        for episode in range(2):
            collector.reset(seed=episode)
            for _ in range(4):
                collector.step(np.array([0.5], np.float32))
        collector.create_dataset("probes/timer-v0", algorithm_name="none")
        collector.close()
        del collector
    return root / "probes" / "timer-v0" / "data"


@pieces("minari")
def test_minari_data_sets(fuzz, seed, recorded, tmp_path):
    parts = {path.name: path.read_bytes() for path in recorded.iterdir()}
    described = json.loads(parts["metadata.json"])

    def attempt(rng):
        for name, content in parts.items():
            damaged = hostile.bytes_of(content, rng) if name != "metadata.json" else content
            (tmp_path / name).write_bytes(damaged if rng.random() < 0.5 else content)
        if rng.random() < 0.7:
            (tmp_path / "metadata.json").write_bytes(hostile.json_of(described, rng))
        datasets.read(tmp_path, RAIL)

    fuzz("minari", seed, attempt)


# --- agents


@pieces("agent")
def test_agents(fuzz, seed, rail, tmp_path):
    rail.save(tmp_path)
    files = {}
    for name in ("policy.safetensors", "model.safetensors"):
        with checkpoint.opened(tmp_path / name) as saved:
            files[name] = saved.description
    arrays = {name: load_file(tmp_path / name) for name in files}
    content = {name: (tmp_path / name).read_bytes() for name in files}

    def attempt(rng):
        for name, told in files.items():
            path = tmp_path / name
            path.write_bytes(content[name])
            if rng.random() < 0.4:
                forged = whole(hostile.json_of(told, rng))
                checkpoint.save_arrays(
                    path, arrays[name], forged if isinstance(forged, dict) else {}
                )
            if rng.random() < 0.2:
                path.write_bytes(hostile.bytes_of(content[name], rng))
        agent = DynaSAC.load(tmp_path, "Rail-v0", probes.Slide())
        action, _ = agent.predict(np.zeros(1, np.float32), deterministic=True)
        assert np.isfinite(action).all()

    fuzz("agent", seed, attempt)


# --- files that are none, and files that name code

NAMES = (
    "config.json",
    "metrics.csv",
    "summary.json",
    "policy/policy.safetensors",
    "policy/model.safetensors",
    "checkpoints/state-00000001.safetensors",
    "video.mp4",
    "asked.json",
)
"""what a directory may hold that is read"""

YAML = b"!!python/object/apply:os.system ['touch marker']\n"


class Evil:
    """Its pickle runs a command when it is read."""

    def __reduce__(self):
        return os.system, ("touch marker",)


def put(kind: str, path: Path) -> None:
    """Something in place of a file."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "directory":
            path.mkdir()
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**40)
        case "pickle":
            path.write_bytes(pickle.dumps(Evil()))
        case "yaml":
            path.write_bytes(YAML)


def load_all(directory: Path) -> list[str]:
    """Give a directory to everything that reads one; what is refused."""
    design = Design("Rail-v0", ("sac",), seeds=1)
    contenders = [agents.agent("sac", design, 10)]
    refused = []
    for load in (
        lambda: DynaSAC.load(directory / "policy", "Rail-v0"),
        lambda: recording.load_run(directory, "Rail-v0"),
        lambda: recording.resume(directory, "Rail-v0", "ensemble"),
        lambda: claim(directory, design, contenders),
        lambda: results.one_run(directory.parent, directory.name, 0, None, {}),
        lambda: report.write_report([directory], directory.parent / "report.html", "Rail-v0"),
        lambda: datasets.read(directory / "metrics.csv", RAIL),
    ):
        try:
            load()
        except UsageError as error:
            refused.append(str(error))
    assert all(said.isprintable() for said in refused)
    return refused


@pytest.fixture
def learned(tmp_path, monkeypatch) -> Path:
    """A run directory with everything in it."""
    monkeypatch.chdir(tmp_path)
    agent = DynaSAC("Rail-v0", "ensemble", dataclasses.replace(SMALL, adapt="ensemble"))
    directory = untrained_run(tmp_path / "run", agent, "ensemble")
    agent.save_checkpoint(directory / "checkpoints")
    runs.write_metrics(directory, ROWS)
    return directory


def test_a_whole_directory_is_read(learned):
    refused = load_all(learned)
    assert len(refused) == 1  # of metrics.csv, which is no log
    assert "has no column" in refused[0]


@pytest.mark.parametrize(
    "kind", ["fifo", "device", "loop", "directory", "sparse", "pickle", "yaml"]
)
def test_files_that_are_none(learned, kind):
    for name in NAMES:
        put(kind, learned / name)
    with hostile.bounded(SECONDS, MEGABYTES):
        refused = load_all(learned)
    assert len(refused) >= 4
    assert not Path("marker").exists()


WATCHED = """
import pickle
import sys
from pathlib import Path

import probes
import test_fuzz

good, *directories = map(Path, sys.argv[1:])
test_fuzz.load_all(good)  # whatever is imported late is there now


def watch(event, arguments):
    first = str(arguments[0]) if arguments else ""
    code = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
    if (
        event.startswith(("pickle.", "marshal.", "os.system", "os.exec", "subprocess.", "os.fork"))
        or (event == "import" and "evil" in first)
        or "evil" in str(code)
    ):
        print(event, first)


sys.path.insert(0, "")
sys.addaudithook(watch)
for directory in directories:
    assert len(test_fuzz.load_all(directory)) >= 2, directory
print("done")
pickle.loads(pickle.dumps(Path()))  # and this is seen
"""


def test_nothing_that_a_directory_holds_is_imported_or_unpickled(learned):
    pickled, named, written = (learned.with_name(f"a{number}") for number in range(3))
    for copy in (pickled, named, written):
        shutil.copytree(learned, copy)
    for name in NAMES:
        put("pickle", pickled / name)
        put("yaml", written / name)
    Path("evil.py").write_text("print('imported')\n")
    evil = {"env_id": "evil:Evil-v0", "model": "evil.py:Evil", "agent": "evil:Evil"}
    asked = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**asked, **evil}))
    (named / "asked.json").write_text(json.dumps({"agents": {"../evil": {}}, "env": "evil:Evil"}))
    for path in ("policy/policy.safetensors", "checkpoints/state-00000001.safetensors"):
        redescribed(named / path, lambda told: {**told, **evil})
    forge = b',"../../evil":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    hostile.forged(named / "policy" / "model.safetensors", {"rung": "ensemble"}, forge, b"\0" * 4)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, (learned, pickled, named, written))],
        env=beside_tests(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout.splitlines()
    assert said[:2] == ["done", "pickle.find_class pathlib"], done.stdout + done.stderr
    assert not Path("marker").exists()
    assert not list(learned.parent.rglob("evil")) + list(learned.parent.parent.glob("evil"))
