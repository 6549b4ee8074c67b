"""Exported policies: they act as the agent does, wherever they run; or there is no file."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL

from dynasac import DynaSAC, UsageError, cli, export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5  # of half the action's range


@functools.cache
def agent_with(hidden: tuple[int, ...], activation: str, env: str = "Plane-v0") -> DynaSAC:
    """An agent whose actions reach all of their box: an untrained one keeps to its middle."""
    learner = dataclasses.replace(SMALL.sac, hidden=hidden, activation=activation)
    model = probes.Drift() if env == "Plane-v0" else probes.Slide()
    agent = DynaSAC(env, model, dataclasses.replace(SMALL, sac=learner), seed=1)
    rng = np.random.default_rng(2)
    # export reads this actor; the other one must not matter
    actor = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.8, leaf.shape), jnp.float32),
        agent.state.sac.averaged_actor,
    )
    agent.state = agent.state._replace(
        sac=eqx.tree_at(lambda sac: sac.averaged_actor, agent.state.sac, actor)
    )
    return agent


def observations(agent: DynaSAC) -> np.ndarray:
    """In the box that is scaled, and far outside."""
    box = agent.spaces.observation
    unit = np.random.default_rng(5).uniform(-4, 4, (1000, box.size)).astype(np.float32)
    return np.asarray(box.from_unit(jnp.asarray(unit)))


def assert_same(agent: DynaSAC, rows: np.ndarray, actions: np.ndarray) -> None:
    """`actions` are what the agent does at the first of `rows`."""
    right, _ = agent.predict(rows, deterministic=True)
    right = right[: len(actions)]
    low, high = np.asarray(agent.spaces.action.low), np.asarray(agent.spaces.action.high)
    assert actions.shape == right.shape
    assert (np.abs(actions - right) / ((high - low) / 2)).max() <= TOLERANCE
    assert (low <= actions).all()
    assert (actions <= high).all()


NETWORKS = [((8,), "relu"), ((16, 8), "tanh"), ((8, 8, 4), "relu")]


@pytest.mark.parametrize(("hidden", "activation"), NETWORKS)
def test_onnx_acts_as_the_agent_does(tmp_path, hidden, activation):
    agent = agent_with(hidden, activation)
    path = tmp_path / "deep" / "policy.onnx"
    written = export.to_onnx(agent, path)
    assert written.files == (path,)
    assert 0 <= written.difference <= TOLERANCE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = observations(agent)
    actions, _ = agent.predict(rows, deterministic=True)
    assert (actions.std(axis=0) > 0.2).all()  # they use their box
    for batch in (1, 3, len(rows)):
        (found,) = session.run(["action"], {"observation": rows[:batch]})
        assert found.dtype == np.float32
        assert len(found) == batch
        assert_same(agent, rows, found)


def test_what_an_onnx_file_says_of_itself(tmp_path):
    agent = agent_with((16, 8), "tanh")
    export.to_onnx(agent, tmp_path / "policy.onnx")
    model = onnx.load(tmp_path / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (13, 7)
    shapes = [
        (
            value.name,
            [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [("observation", ["batch", 4]), ("action", ["batch", 2])]
    said = {one.key: one.value for one in model.metadata_props}
    assert said["env_id"] == "Plane-v0"
    assert said["dynasac_version"]
    assert json.loads(said["action_low"]) == [-1, -3]
    assert json.loads(said["action_high"]) == [1, 5]
    np.testing.assert_array_equal(
        np.float32(json.loads(said["observation_low"])), agent.spaces.observation.low
    )


ELSEWHERE = """
import importlib.util, json, sys
import numpy as np
folder, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location("policy", f"{folder}/{name}.py")
policy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(policy)
rows = np.load(f"{folder}/rows.npy")
np.save(f"{folder}/batch.npy", policy.act(rows))
np.save(f"{folder}/single.npy", [policy.act(row) for row in rows])
np.save(f"{folder}/lists.npy", [policy.act(row.tolist()) for row in rows])
foreign = {"jax", "dynasac", "torch", "onnx"} & set(sys.modules)
assert not foreign, foreign
"""


def run_without_packages(folder: Path, name: str) -> None:
    """In a Python that sees NumPy and nothing else that is installed."""
    packages = folder / "packages"
    packages.mkdir()
    numpy = Path(np.__file__).parent
    for found in (numpy, numpy.with_name("numpy.libs")):
        if found.exists():
            (packages / found.name).symlink_to(found)
    found = subprocess.run(
        [
            sys.executable,
            "-S",
            "-E",
            "-c",
            f"import sys; sys.path.append({str(packages)!r})\n" + ELSEWHERE,
            str(folder),
            name,
        ],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(("hidden", "activation"), NETWORKS)
def test_numpy_alone_acts_as_the_agent_does(tmp_path, hidden, activation):
    agent = agent_with(hidden, activation)
    written = export.to_numpy(agent, tmp_path / "my-policy.npz")
    assert written.files == (tmp_path / "my-policy.npz", tmp_path / "my-policy.py")
    assert 0 <= written.difference <= TOLERANCE
    rows = observations(agent)
    np.save(tmp_path / "rows.npy", rows)
    run_without_packages(tmp_path, "my-policy")
    for way in ("batch", "single", "lists"):
        actions = np.load(tmp_path / f"{way}.npy")
        assert actions.dtype == np.float32
        assert_same(agent, rows, actions)


def test_a_single_number_observed(tmp_path):
    agent = agent_with((8, 8), "relu", "Rail-v0")
    export.to_onnx(agent, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "policy.onnx", providers=["CPUExecutionProvider"]
    )
    rows = observations(agent)
    assert rows.shape == (1000, 1)
    assert_same(agent, rows, session.run(None, {"observation": rows})[0])
    export.to_numpy(agent, tmp_path / "policy.npz")
    with np.load(tmp_path / "policy.npz", allow_pickle=False) as arrays:
        assert str(arrays["env_id"]) == "Rail-v0"
        assert arrays["action_low"] == [-2]


def test_a_name_of_an_environment_is_no_program(tmp_path, monkeypatch):
    agent = agent_with((8, 8), "relu", "Rail-v0")
    monkeypatch.setattr(agent, "env_id", '"""\nraise SystemExit("ran")\n"""')
    export.to_numpy(agent, tmp_path / "policy.npz")
    assert "SystemExit" not in (tmp_path / "policy.py").read_text()
    export.to_onnx(agent, tmp_path / "policy.onnx")
    metadata = onnx.load(tmp_path / "policy.onnx").metadata_props
    assert {one.key: one.value for one in metadata}["env_id"] == agent.env_id


@pytest.mark.parametrize("write", [export.to_onnx, export.to_numpy])
def test_a_file_that_does_not_agree_is_not_left(tmp_path, monkeypatch, write):
    agent = agent_with((8,), "relu")
    path = tmp_path / "policy.npz"
    right = agent.predict
    monkeypatch.setattr(
        agent, "predict", lambda rows, **how: (right(rows, **how)[0] + np.float32(1e-3), None)
    )
    with pytest.raises(UsageError, match=r"differ from the agent's by .*it is not written"):
        write(agent, path)
    assert not list(tmp_path.iterdir())


def test_somebody_elses_program_is_not_overwritten(tmp_path):
    agent = agent_with((8,), "relu")
    (tmp_path / "cart.py").write_text("mine = True\n")
    with pytest.raises(UsageError, match=r"cart\.py is not this command's: choose another"):
        export.to_numpy(agent, tmp_path / "cart.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["cart.py"]
    assert (tmp_path / "cart.py").read_text() == "mine = True\n"
    for _ in range(2):  # its own it may replace
        export.to_numpy(agent, tmp_path / "policy.npz")
    with pytest.raises(UsageError, match=r"ends in \.npz"):
        export.to_numpy(agent, tmp_path / "policy")
    with pytest.raises(UsageError, match=r"cannot write .*: Is a directory"):
        export.to_onnx(agent, tmp_path)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    agent = agent_with((8,), "relu")
    with pytest.raises(UsageError, match=r"pip install 'dynasac\[onnx\]'"):
        export.to_onnx(agent, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent = agent_with((8, 8), "relu", "Rail-v0")
    agent.save("run/policy")
    Path("run/config.json").write_text('{"env_id": "Rail-v0"}')
    assert cli.run(["export", "run"]) == 0
    said = capsys.readouterr().out
    assert "run/policy.onnx: the policy for Rail-v0" in said
    assert "on 1,000 observations" in said
    session = onnxruntime.InferenceSession("run/policy.onnx", providers=["CPUExecutionProvider"])
    rows = observations(agent)
    assert_same(agent, rows, session.run(None, {"observation": rows})[0])
    assert cli.run(["export", "run", "--format=numpy", "--output=p.npz"]) == 0
    assert "p.npz and p.py: the policy for Rail-v0" in capsys.readouterr().out
    assert Path("p.py").exists()
    with pytest.raises(UsageError, match="nothing is not a run directory"):
        cli.run(["export", "nothing"])


def test_predicted_actions_stay_in_their_box():
    rng = np.random.default_rng(0)
    low = rng.normal(size=200).astype(np.float32)
    high = (low + rng.uniform(0.1, 3, 200)).astype(np.float32)
    env = probes.Shaped(gym.spaces.Box(-1.0, 1.0, (1,)), gym.spaces.Box(low, high))
    agent = DynaSAC(env, "none", SMALL)
    unlimited = np.asarray(agent.spaces.action.from_unit(jnp.ones(200)))
    assert (unlimited > high).any()  # rounding alone leaves some of these boxes
    for sign in (-1, 1):
        actor = agent.state.sac.actor
        saturated = probes.constant_actor(actor, [20.0 * sign] * 200, [0.0] * 200)
        agent.state = agent.state._replace(
            sac=eqx.tree_at(
                lambda sac: (sac.actor, sac.averaged_actor), agent.state.sac, (saturated, saturated)
            )
        )
        for deterministic in (True, False):
            action, _ = agent.predict(np.zeros(1), deterministic=deterministic)
            assert action in env.action_space
