"""The trained policy as a file that runs without this package: ONNX, or NumPy alone.

Both hold all that is between an observation and an action in the environment's own units: the
scaling of observations, the network's mean, its squashing, the scaling to the action box and the
clipping to it. Neither is written before it has been compared with the agent.
"""

import importlib.metadata
import io
import json
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import checkpoint
from .agent import DynaSAC
from .errors import UsageError
from .spaces import Box

TOLERANCE = 1e-5
"""largest difference from the agent's own actions, as a share of half the action's range"""

TRIED = 1000
"""observations that they are compared on"""

OPSET, IR_VERSION = 13, 7
"""those of ONNX 1.8 (2020): old enough for most runtimes, and nothing newer is needed"""


class Exported(NamedTuple):
    """What was written."""

    files: tuple[Path, ...]
    difference: float
    """the largest from the agent's own actions, as a share of half the action's range"""


def to_onnx(agent: DynaSAC, path: str | Path) -> Exported:
    """Write the deterministic policy as an ONNX model.

    Its input "observation", float32[batch, n], and its output "action", float32[batch, m], are in
    the environment's units; `batch` is free. Its metadata hold env_id, dynasac_version, and, as
    JSON, observation_low and observation_high (the box that is scaled to [-1, 1]), action_low and
    action_high.

    Raises:
        UsageError: onnx or onnxruntime is missing, the file cannot be written, or it would not act
            as the agent does; nothing is written then.
    """
    content = _onnx(agent)
    difference = _compared(agent, _onnx_policy(content), "ONNX")
    path = Path(path)
    _write({path: content})
    return Exported((path,), difference)


def to_numpy(agent: DynaSAC, path: str | Path) -> Exported:
    """Write the deterministic policy as an .npz of arrays, and beside it a .py that runs it.

    That module needs NumPy alone; its `act(observation)` takes one observation or a batch.

    Raises:
        UsageError: `path` does not end in .npz, the .py beside it is somebody else's, a file cannot
            be written, or the policy would not act as the agent does; nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UsageError(f"--output {path}: the arrays go to a file that ends in .npz")
    program = path.with_suffix(".py")
    if program.exists() and not program.read_bytes().startswith(FIRST_LINE.encode()):
        raise UsageError(f"{program} is not this command's: choose another --output than {path}")
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **_numpy(agent))
    files = {path: arrays.getvalue(), program: PROGRAM.encode()}
    with tempfile.TemporaryDirectory() as place:
        for original, content in files.items():
            (Path(place) / original.name).write_bytes(content)
        act = runpy.run_path(str(Path(place) / program.name))["act"]
        difference = _compared(agent, act, "NumPy")
    _write(files)
    return Exported(tuple(files), difference)


class _Policy(NamedTuple):
    """action = clip(centre + half · tanh(network((observation - centre) / half)))."""

    observation: tuple[np.ndarray, np.ndarray]  # centre and half width of the box
    layers: list[tuple[np.ndarray, np.ndarray]]  # Float32[outputs, inputs], Float32[outputs]
    activation: str
    action: tuple[np.ndarray, np.ndarray]
    limits: tuple[np.ndarray, np.ndarray]


def _policy(agent: DynaSAC) -> _Policy:
    spaces, body = agent.spaces, agent.state.sac.averaged_actor.body
    layers = [
        (np.asarray(weight), np.asarray(bias)[:, 0])
        for weight, bias in zip(body.weights, body.biases, strict=True)
    ]
    size = spaces.action.size
    weight, bias = layers[-1]
    layers[-1] = weight[:size], bias[:size]  # the mean; the spread is for learning
    return _Policy(
        observation=_scale(spaces.observation),
        layers=layers,
        activation=body.activation,
        action=_scale(spaces.action),
        limits=(np.asarray(spaces.action.low), np.asarray(spaces.action.high)),
    )


def _scale(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width, in float32 as `Box` has them."""
    low, high = np.asarray(box.low), np.asarray(box.high)
    return (high + low) / np.float32(2), (high - low) / np.float32(2)


# --- ONNX ---


def _onnx(agent: DynaSAC) -> bytes:
    """The policy as a checked ONNX model."""
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ModuleNotFoundError:
        raise UsageError(
            "ONNX needs a package: pip install 'dynasac[onnx]'; --format numpy needs none"
        ) from None
    policy = _policy(agent)
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def apply(operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [to], name=to, **attributes))
        return to

    centre, half = policy.observation
    moved = apply("Sub", "observation", constant("observation_centre", centre), to="centred")
    hidden = apply("Div", moved, constant("observation_half_width", half), to="scaled")
    activation = {"tanh": "Tanh", "relu": "Relu"}[policy.activation]
    for index, (weight, bias) in enumerate(policy.layers):
        parameters = constant(f"weight_{index}", weight), constant(f"bias_{index}", bias)
        hidden = apply("Gemm", hidden, *parameters, to=f"layer_{index}", transB=1)
        last = index == len(policy.layers) - 1
        hidden = apply("Tanh" if last else activation, hidden, to=f"activation_{index}")
    centre, half = policy.action
    wide = apply("Mul", hidden, constant("action_half_width", half), to="widened")
    moved = apply("Add", wide, constant("action_centre", centre), to="unclipped")
    low, high = policy.limits
    above = apply("Max", moved, constant("action_low", low), to="not_below")
    apply("Min", above, constant("action_high", high), to="action")

    def described(name: str, size: int):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])

    graph = helper.make_graph(
        nodes,
        "dynasac_policy",
        [described("observation", len(policy.observation[0]))],
        [described("action", len(low))],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="dynasac"
    )
    model.ir_version = IR_VERSION
    helper.set_model_props(model, _described(agent))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _described(agent: DynaSAC) -> dict[str, str]:
    """What a reader of the file may want to know, as text; boxes as JSON."""
    spaces = agent.spaces
    return {
        "env_id": agent.env_id,
        "dynasac_version": importlib.metadata.version("dynasac"),
        **{
            f"{kind}_{end}": json.dumps(np.asarray(getattr(box, end)).tolist(), allow_nan=False)
            for kind, box in (("observation", spaces.observation), ("action", spaces.action))
            for end in ("low", "high")
        },
    }


def _onnx_policy(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The model in onnxruntime."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError("ONNX is tried in a package: pip install 'dynasac[onnx]'") from None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def act(observations: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["action"], {"observation": observations})[0])

    return act


# --- NumPy ---

FIRST_LINE = '"""A policy that dynasac trained: act(observation) is the action'

PROGRAM = (
    FIRST_LINE
    + ''', in the environment's units.

For one observation or a batch of them. Needs NumPy, and the .npz file of the same name beside it.
"""

from pathlib import Path

import numpy as np

p = dict(np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False))


def act(observation):
    x = np.asarray(observation, np.float32)
    x = (x - p["observation_centre"]) / p["observation_half_width"]
    for i in range(p["layers"] - 1):
        x = x @ p[f"weight_{i}"] + p[f"bias_{i}"]
        x = np.tanh(x) if p["activation"] == "tanh" else np.maximum(x, 0)
    x = np.tanh(x @ p["weight_mean"] + p["bias_mean"])
    x = p["action_centre"] + p["action_half_width"] * x
    return np.clip(x, p["action_low"], p["action_high"])
'''
)
"""the same for every policy, so that no text of an agent becomes code"""


def _numpy(agent: DynaSAC) -> dict[str, np.ndarray]:
    """The arrays that `PROGRAM` reads, and what describes them; weights are [inputs, outputs]."""
    policy = _policy(agent)
    arrays = {
        "observation_centre": policy.observation[0],
        "observation_half_width": policy.observation[1],
        "layers": np.array(len(policy.layers)),
        "activation": np.array(policy.activation),
        "action_centre": policy.action[0],
        "action_half_width": policy.action[1],
        "action_low": policy.limits[0],
        "action_high": policy.limits[1],
    }
    names = [*map(str, range(len(policy.layers) - 1)), "mean"]
    for name, (weight, bias) in zip(names, policy.layers, strict=True):
        arrays |= {f"weight_{name}": weight.T, f"bias_{name}": bias}
    described = _described(agent)
    texts = {name: np.array(described[name]) for name in ("env_id", "dynasac_version")}
    return {**arrays, **texts}


# --- both ---


def _compared(agent: DynaSAC, act: Callable[[np.ndarray], np.ndarray], kind: str) -> float:
    """The largest difference from the agent's own actions, half of them far outside the box.

    Raises:
        UsageError: it is more than `TOLERANCE`, or an action is outside its box.
    """
    policy, rng = _policy(agent), np.random.default_rng(0)
    centre, half = policy.observation
    reach = np.where(np.arange(TRIED) % 2, 1.0, 5.0)[:, None]
    unit = reach * rng.uniform(-1, 1, (TRIED, len(centre)))
    observations = (centre + half * unit).astype(np.float32)
    right, _ = agent.predict(observations, deterministic=True)
    low, high = policy.limits
    worst = 0.0
    # all at once, a few, and one by one
    for batch in (TRIED, 7, 1):
        count = min(TRIED, 32 * batch)
        parts = [act(observations[first : first + batch]) for first in range(0, count, batch)]
        found = np.concatenate(parts)
        share = np.abs(found - right[: len(found)]) / np.maximum(policy.action[1], 1e-30)
        if not np.isfinite(found).all() or (found < low).any() or (found > high).any():
            raise UsageError(f"the {kind} file's actions leave the action box; it is not written")
        worst = max(worst, float(share.max()))
    if not worst <= TOLERANCE:
        raise UsageError(
            f"the {kind} file's actions differ from the agent's by {worst:.1e} of half their "
            f"range, more than {TOLERANCE:.0e}; it is not written"
        )
    return worst


def _write(files: dict[Path, bytes]) -> None:
    for path, content in files.items():
        try:
            checkpoint.write_bytes(path, content)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
