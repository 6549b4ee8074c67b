"""Simulators as dynamics models: any Gymnasium environment whose state can be set."""

import abc
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import UsageError, one_line
from ..spaces import spaces_of
from .base import DynamicsModel, ModelStep


class HostStep(NamedTuple):
    """What `n` independent steps of a `HostModel` led to.

    A simulator that diverges says so with numbers that are not finite.
    """

    states: Float[np.ndarray, "n state"]
    observations: Float[np.ndarray, "n observation"]
    """float32, in the environment's own units"""
    rewards: Float[np.ndarray, " n"]
    """in the environment's own unit"""
    terminated: Bool[np.ndarray, " n"]
    """whether the state reached is terminal; truncation is not the model's business"""


class HostModel(abc.ABC):
    """Dynamics that run outside the compiled programs: planning fills a synthetic replay from them.

    A `DynamicsModel` is traced and compiled; this is ordinary NumPy, so it can be anybody's
    simulator. States are float64 vectors whose meaning is the model's own.
    """

    observation_size: int
    action_size: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @abc.abstractmethod
    def reset(
        self, count: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "count state"], Float[np.ndarray, "count observation"]]:
        """Begin `count` episodes: their states and what is observed of them (float32)."""

    @abc.abstractmethod
    def step(
        self, states: Float[np.ndarray, "n state"], actions: Float[np.ndarray, "n action"]
    ) -> HostStep:
        """Step every state with its own action, which is in the environment's unit."""

    @abc.abstractmethod
    def state(
        self, observations: Float[np.ndarray, "n observation"]
    ) -> Float[np.ndarray, "n state"]:
        """A state that looks like each observation and goes on like it.

        Raises:
            UsageError: observations do not tell the state.
        """

    def close(self) -> None:  # noqa: B027  (most models hold nothing)
        """Release threads and windows."""


def host_reset(
    model: HostModel, count: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "count state"], Float[np.ndarray, "count observation"]]:
    """`HostModel.reset`, of arrays that nobody else writes into.

    Raises:
        UsageError: it failed, or returned something else or what is not finite.
    """
    found = _called(model, "reset", count, rng)
    if not isinstance(found, tuple) or len(found) != 2:
        raise UsageError(f"{model.name}.reset must return a tuple (states, observations)")
    shapes = {"states": (count, None), "observations": (count, model.observation_size)}
    for (field, shape), array in zip(shapes.items(), found, strict=True):
        if not np.isfinite(_numbers(model, "reset", field, array, shape)).all():
            raise UsageError(f"{model.name}.reset returned {field} that are not finite")
    return np.array(found[0], np.float64), np.array(found[1], np.float32)


def host_step(model: HostModel, states: np.ndarray, actions: np.ndarray) -> HostStep:
    """`HostModel.step`, of arrays that nobody else writes into.

    Raises:
        UsageError: it failed, or returned something else; numbers may be other than finite.
    """
    found = _called(model, "step", states.copy(), actions)
    if not isinstance(found, HostStep):
        raise UsageError(f"{model.name}.step must return a HostStep, not {type(found).__name__}")
    rows = (len(states),)
    ended = np.asarray(found.terminated)
    if ended.shape != rows or ended.dtype != bool:
        raise UsageError(
            f"{model.name}.step returned terminated as {ended.dtype}{list(ended.shape)}: it must "
            f"be bool{list(rows)}"
        )
    shapes = {
        "states": states.shape,
        "observations": (*rows, model.observation_size),
        "rewards": rows,
    }
    numbers = {
        field: _numbers(model, "step", field, getattr(found, field), shape)
        for field, shape in shapes.items()
    }
    with np.errstate(over="ignore"):  # what single precision does not hold is not finite
        return HostStep(
            np.array(numbers["states"], np.float64),
            np.array(numbers["observations"], np.float32),
            np.array(numbers["rewards"], np.float32),
            ended,
        )


def host_state(model: HostModel, observations: np.ndarray) -> np.ndarray:
    """`HostModel.state`.

    Raises:
        UsageError: it failed, or returned something else or what is not finite.
    """
    found = _called(model, "state", observations)
    states = _numbers(model, "state", "states", found, (len(observations), None))
    if not np.isfinite(states).all():
        raise UsageError(f"{model.name}.state returned states that are not finite")
    return np.array(states, np.float64)


def _called(model: HostModel, method: str, *given: Any) -> Any:
    try:
        return getattr(model, method)(*given)
    except UsageError:
        raise
    except Exception as error:  # somebody else's code
        raise UsageError(f"{model.name}.{method} failed: {one_line(error)}") from error


def _numbers(
    model: HostModel, method: str, field: str, value: Any, shape: tuple[int | None, ...]
) -> np.ndarray:
    """An array of numbers, held against its shape; None in that is any size."""
    array = np.asarray(value)
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in "fiu":
        told = ["any" if size is None else size for size in shape]
        raise UsageError(
            f"{model.name}.{method} returned {field} as {array.dtype}{list(array.shape)}: they "
            f"must be numbers of shape {told}".replace("'", "")
        )
    return array


class Called(DynamicsModel):
    """A host model behind the contract of those that are compiled, for trying it on transitions.

    Compiled programs call it back on the host: too slow to plan with. Every step recovers the state
    from the observation.
    """

    host: HostModel = eqx.field(static=True)

    def __check_init__(self):
        # from within a compiled program nobody would learn what is wrong with it
        states, observations = host_reset(self.host, 1, np.random.default_rng(0))
        host_step(self.host, states, np.zeros((1, self.host.action_size), np.float32))
        host_state(self.host, observations)

    @property
    def name(self) -> str:
        return self.host.name

    def initial_observation(self, key: PRNGKeyArray) -> Array:
        seed = jax.random.bits(key, dtype="uint32")
        shape = jax.ShapeDtypeStruct((self.host.observation_size,), jnp.float32)
        return jax.pure_callback(self._reset, shape, seed, vmap_method="sequential")

    def step(self, observation: Array, action: Array, key: PRNGKeyArray) -> ModelStep:
        del key
        shapes = (
            jax.ShapeDtypeStruct(observation.shape, jnp.float32),
            jax.ShapeDtypeStruct((), jnp.float32),
            jax.ShapeDtypeStruct((), bool),
        )
        found = jax.pure_callback(
            self._step, shapes, observation, action, vmap_method="broadcast_all"
        )
        return ModelStep(*found)

    def project(self, observation: Array) -> Array:
        return observation

    def _reset(self, seed):
        return host_reset(self.host, 1, np.random.default_rng(int(seed)))[1][0]

    def _step(self, observations, actions):
        # JAX may ask for one row or for many
        single = np.ndim(observations) == 1
        rows = np.atleast_2d(np.asarray(observations))
        actions = np.atleast_2d(np.asarray(actions))
        result = host_step(self.host, host_state(self.host, rows), actions)
        found = result.observations, result.rewards, result.terminated
        return tuple(array[0] for array in found) if single else found


def simulator(env: gym.Env) -> HostModel:
    """The fastest model that `env` can be; the environment becomes the model's own.

    Raises:
        UsageError: the environment's state cannot be set; the message says what to write.
    """
    if type(_bare(env)).__module__ in FORMULAS:
        try:
            return MujocoModel(env)
        except UsageError:
            pass  # changed in a way that the formulas do not know
    return SimulatorModel(env)


class SimulatorModel(HostModel):
    """One environment, put into each state in turn and stepped.

    The state is what `get_state()` returns and `set_state(state)` takes, if the environment has
    both; else MuJoCo's integration state; else the attribute `state`, as in classic control.
    Wrappers that only count or check are taken off; those that change observations, actions or
    rewards stay. `state` asks the environment's `state_of(observation)`, if there is one.
    """

    @property
    def name(self) -> str:
        core = self.env.unwrapped
        return core.spec.id if core.spec else type(core).__name__

    def __init__(self, env: gym.Env):
        """Take over `env`, a fresh one, and try whether setting its state works.

        Raises:
            UsageError: it does not; the message says what to write.
        """
        spaces = spaces_of(env)
        self.observation_size = spaces.observation.size
        self.action_size = spaces.action.size
        self.env = _bare(env)
        try:
            self.env.reset(seed=0)  # classic control has no state before
            self._access = self._state_access()
            self._walk = self._walked(np.random.default_rng(0))
            repeated = [self._try(taken.state, taken.action) for taken in reversed(self._walk)]
        except UsageError:
            raise
        except Exception as error:  # the environment is somebody else's code
            raise UsageError(f"setting the state of {self.name} fails: {one_line(error)}") from None
        if not _agree(reversed(self._walk), repeated, 1e-9):
            raise UsageError(
                f"the same action from the same state of {self.name} leads elsewhere: write "
                "get_state() and set_state(state) for all that a step depends on, wrappers included"
            )
        self._inverse = self._state_inverse()

    def reset(self, count, rng):
        states, observations = [], []
        seed = int(rng.integers(2**31))
        for _ in range(count):
            observation, _ = self.env.reset(seed=seed)
            seed = None  # from here the environment's generator goes on by itself
            states.append(self._access.get())
            observations.append(np.array(observation, np.float32))
        return np.array(states), np.array(observations)

    def step(self, states, actions):
        taken = [self._try(*pair) for pair in zip(states, actions, strict=True)]
        return HostStep(
            states=np.array([each.next_state for each in taken]).reshape(np.shape(states)),
            observations=np.array([each.next_observation for each in taken], np.float32).reshape(
                len(taken), self.observation_size
            ),
            rewards=np.array([each.reward for each in taken], np.float64),
            terminated=np.array([each.terminated for each in taken], bool),
        )

    def state(self, observations):
        if self._inverse is None:
            raise UsageError(
                f"the state of {self.name} cannot be recovered from an observation; if it can, "
                "write state_of(observation), which returns a state as get_state() does"
            )
        return self._inverse(np.asarray(observations, np.float64))

    def close(self):
        self.env.close()

    def _try(self, state: np.ndarray, action: np.ndarray) -> "_Taken":
        """Step one state."""
        self._access.set(state)
        given = np.array(action, self.env.action_space.dtype)
        observation, reward, terminated, _, _ = self.env.step(given)
        return _Taken(
            state=state,
            action=action,
            next_state=self._access.get(),
            next_observation=np.array(observation, np.float64),  # some return the same array
            reward=np.asarray(reward, np.float64).item(),
            terminated=bool(terminated),
        )

    def _walked(self, rng: np.random.Generator) -> list["_Taken"]:
        """A few steps along an episode under random actions, what is shown before each included."""
        space: Any = self.env.action_space
        walk, shown = [], None
        for _ in range(WALK_STEPS):
            if shown is None:
                shown = np.array(self.env.reset()[0], np.float64)
            action = rng.uniform(space.low, space.high).astype(space.dtype)
            walk.append(self._try(self._access.get(), action)._replace(observation=shown))
            shown = None if walk[-1].terminated else walk[-1].next_observation
        return walk

    def _state_access(self) -> "_Access":
        core: Any = self.env.unwrapped
        if all(self.env.has_wrapper_attr(name) for name in ("get_state", "set_state")):
            get, put = map(self.env.get_wrapper_attr, ("get_state", "set_state"))
            return _Access(lambda: np.array(get(), np.float64), lambda state: put(state.copy()))
        if in_mujoco(core):
            return _mujoco_access(core, _mujoco().mjtState.mjSTATE_INTEGRATION.value)
        if isinstance(getattr(core, "state", None), np.ndarray) and core.state.ndim == 1:
            return _attribute_access(core)
        raise UsageError(
            f"the state of {self.name} cannot be set: write get_state() and set_state(state) in "
            f"{type(core).__name__}"
        )

    def _state_inverse(self) -> "Callable[[np.ndarray], np.ndarray] | None":
        """What recovers states [n, s] from observations [n, o], if it does so along the walk."""
        core: Any = self.env.unwrapped
        if self.env.has_wrapper_attr("state_of"):
            state_of = self.env.get_wrapper_attr("state_of")
            inverse = lambda seen: np.array([state_of(each) for each in seen], np.float64)  # noqa: E731
        elif in_mujoco(core):
            inverse = _mujoco_inverse(core, self._access)
        else:
            inverse = _pendulum_inverse if "PendulumEnv" in _classes(core) else np.copy
        try:
            found = inverse(np.array([taken.observation for taken in self._walk]))
            if found.shape != np.shape([taken.state for taken in self._walk]):
                return None
            again = [
                self._try(state, taken.action)
                for state, taken in zip(found, self._walk, strict=True)
            ]
        except Exception:  # made for another observation, or somebody else's code
            return None
        # most environments show float32, and what follows from it is as inexact
        return inverse if _agree(self._walk, again, 1e-4) else None


class MujocoModel(SimulatorModel):
    """Some of Gymnasium's MuJoCo environments, with the physics in parallel on every core.

    `mujoco.rollout` steps all states at once; `FORMULAS` then gives observations, rewards and
    terminations as array expressions of the states. The model of the environment is used as it is,
    changed masses and other XML files included. States are MuJoCo's full physics state and the
    constraint solver starts cold from each, which changes a step by less than 1e-8.
    """

    def __init__(self, env: gym.Env):
        """Take over `env`, a fresh one, and compare the formulas with a few of its own steps.

        Raises:
            UsageError: no formulas are known, or they do not describe this environment.
        """
        core: Any = _bare(env)
        self._formula = FORMULAS.get(type(core).__module__)
        if self._formula is None:
            raise UsageError(f"no formulas are known for {core}: use SimulatorModel")
        super().__init__(core)
        self._core = core
        cores = _cores()
        self._workers = [_mujoco().MjData(core.model) for _ in range(cores)]
        self._rollout = _mujoco("rollout").Rollout(nthread=cores if cores > 1 else 0)
        walk = self._walk
        step = self.step(
            np.array([taken.state for taken in walk]), np.array([taken.action for taken in walk])
        )
        found = [
            taken._replace(next_observation=o, reward=r, terminated=bool(t))
            for taken, o, r, t in zip(walk, *step[1:], strict=True)
        ]
        if not _agree(walk, found, 1e-6):
            self._rollout.close()
            raise UsageError(f"{self.name} does not step as its class does: use SimulatorModel")

    def step(self, states, actions):
        if len(states) == 0:
            return super().step(states, actions)
        core, formula = self._core, self._formula
        assert formula is not None
        actions = np.asarray(actions, core.action_space.dtype)
        left = None
        substeps = core.frame_skip - (formula.left is not None)
        after = self._physics(states, actions, substeps)
        if formula.left is not None:
            after, left = self._last_substep(after, actions, formula.left)
        observations, rewards, terminated = formula.outcome(
            core, self._motion(states), self._motion(after), left, actions
        )
        return HostStep(after, observations.astype(np.float32), rewards, terminated)

    def close(self):
        self._rollout.close()
        super().close()

    def _physics(self, states: np.ndarray, actions: np.ndarray, substeps: int) -> np.ndarray:
        """States [n, s] after some substeps under constant actions."""
        if substeps == 0:
            return states
        control = np.repeat(actions[:, None, :].astype(np.float64), substeps, axis=1)
        after, _ = self._rollout.rollout(self._core.model, self._workers, states, control)
        return np.asarray(after)[:, -1].copy()  # lets go of the substeps between

    def _last_substep(
        self, states: np.ndarray, actions: np.ndarray, read: Callable[[Any], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take the last substep here, and read what it leaves in the data beside the state.

        Positions of bodies and forces are those of the integrator's last stage, not of the state
        that it reaches, and these are what the environments show. Rollouts do not return them.
        """
        mujoco, core = _mujoco(), self._core
        model, data, parts = core.model, core.data, mujoco.mjtState.mjSTATE_FULLPHYSICS.value
        after, left = np.empty_like(states), []
        for state, action, reached in zip(states, actions, after, strict=True):
            data.qacc_warmstart[:] = 0
            mujoco.mj_setState(model, data, state, parts)
            data.ctrl[:] = action
            mujoco.mj_step(model, data)
            mujoco.mj_getState(model, data, reached, parts)
            left.append(read(core))
        return after, np.array(left)

    def _motion(self, states: np.ndarray) -> "_Motion":
        nq, nv = self._core.model.nq, self._core.model.nv
        return _Motion(states[:, 1 : 1 + nq], states[:, 1 + nq : 1 + nq + nv])

    def _state_access(self) -> "_Access":
        return _mujoco_access(self.env.unwrapped, _mujoco().mjtState.mjSTATE_FULLPHYSICS.value)


WALK_STEPS = 10
"""How many steps a new model is tried on."""


class _Taken(NamedTuple):
    """One step of one state."""

    state: np.ndarray
    action: np.ndarray
    next_state: np.ndarray
    next_observation: np.ndarray
    reward: float
    terminated: bool
    observation: np.ndarray | None = None
    """what was shown of `state`, where that is known"""


class _Access(NamedTuple):
    """How to read and write the state of an environment, as a fresh float64 vector."""

    get: Callable[[], np.ndarray]
    set: Callable[[np.ndarray], Any]


class _Motion(NamedTuple):
    """Generalised positions and velocities of MuJoCo states."""

    qpos: Float[np.ndarray, "n nq"]
    qvel: Float[np.ndarray, "n nv"]


class _Formula(NamedTuple):
    """How one class of environments sees what the physics did."""

    outcome: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(environment, motion before, motion after, what was left, actions) to observations, rewards
    and terminations"""
    left: Callable[[Any], np.ndarray] | None = None
    """what the environment reads of its MuJoCo data beside the state, if anything"""


BOOKKEEPING = (
    gym.wrappers.TimeLimit,
    gym.wrappers.OrderEnforcing,
    gym.wrappers.PassiveEnvChecker,
    gym.wrappers.RecordEpisodeStatistics,
    gym.wrappers.Autoreset,
)
"""Wrappers that leave observations, actions, rewards and terminations alone."""


def _bare(env: gym.Env) -> gym.Env:
    """The environment without its bookkeeping, also below other wrappers."""
    if not isinstance(env, gym.Wrapper):
        return env
    inner = _bare(env.env)
    if isinstance(env, BOOKKEEPING):
        return inner
    env.env = inner
    return env


def _agree(steps, others, tolerance: float) -> bool:
    """Whether two lists of steps lead to the same, to a relative and absolute tolerance."""
    return all(
        one.terminated == other.terminated
        and np.allclose(one.reward, other.reward, tolerance, tolerance, equal_nan=True)
        and np.allclose(
            one.next_observation, other.next_observation, tolerance, tolerance, equal_nan=True
        )
        for one, other in zip(steps, others, strict=True)
    )


def _classes(core: Any) -> set[str]:
    return {each.__name__ for each in type(core).__mro__}


def _cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _attribute_access(core: Any) -> _Access:
    """Access to a state that is kept in the attribute `state`."""

    def put(state):
        core.state = state.copy()
        if hasattr(core, "steps_beyond_terminated"):  # the cart-pole, once fallen, pays nothing
            core.steps_beyond_terminated = None

    return _Access(lambda: np.array(core.state, np.float64), put)


def _pendulum_inverse(seen: np.ndarray) -> np.ndarray:
    return np.stack([np.arctan2(seen[:, 1], seen[:, 0]), seen[:, 2]], axis=1)


def in_mujoco(core: Any) -> bool:
    """By name, so that MuJoCo is not imported for environments that do without."""
    return type(getattr(core, "data", None)).__name__ == "MjData" and hasattr(core, "model")


def _mujoco(module: str = "") -> Any:
    """MuJoCo or a module of it, imported only when an environment uses it."""
    return importlib.import_module(f"mujoco.{module}".rstrip("."))


def _mujoco_access(core: Any, parts: int) -> _Access:
    """Access to some parts (bits of `mjtState`) of a MuJoCo environment's state."""
    mujoco = _mujoco()
    size = mujoco.mj_stateSize(core.model, parts)

    def get():
        state = np.empty(size)
        mujoco.mj_getState(core.model, core.data, state, parts)
        return state

    def put(state):
        core.data.qacc_warmstart[:] = 0  # a cold solver, unless `parts` has its start
        mujoco.mj_setState(core.model, core.data, state, parts)
        # some environments compare where bodies were with where they are
        mujoco.mj_kinematics(core.model, core.data)
        mujoco.mj_comPos(core.model, core.data)

    return _Access(get, put)


def _mujoco_inverse(core: Any, access: _Access) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse for observations that begin with positions, some left out, and velocities.

    Positions that are left out are those of MuJoCo's reset, which is where nothing depends on them.
    What an observation clips or wraps stays so: speeds beyond 10, angles beyond half a turn.
    """
    nq, nv = core.model.nq, core.model.nv
    _mujoco().mj_resetData(core.model, core.data)
    rest = access.get()  # MuJoCo's order: time, positions, velocities, others

    def motion(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if "InvertedDoublePendulumEnv" in _classes(core):
            angles = np.arctan2(seen[:, 1:3], seen[:, 3:5])
            return np.concatenate([seen[:, :1], angles], axis=1), seen[:, 5:8]
        if "ReacherEnv" in _classes(core):
            angles = np.arctan2(seen[:, 2:4], seen[:, :2])
            # the target does not move
            velocities = np.concatenate([seen[:, 6:8], np.zeros((len(seen), 2))], axis=1)
            return np.concatenate([angles, seen[:, 4:6]], axis=1), velocities
        structure = getattr(core, "observation_structure", {})
        skipped = structure.get("skipped_qpos", max(nq + nv - seen.shape[1], 0))
        hidden = np.tile(rest[1 : 1 + skipped], (len(seen), 1))
        shown = nq - skipped
        return np.concatenate([hidden, seen[:, :shown]], axis=1), seen[:, shown : shown + nv]

    def inverse(seen):
        states = np.tile(rest, (len(seen), 1))
        states[:, 1 : 1 + nq], states[:, 1 + nq : 1 + nq + nv] = motion(seen)
        return states

    return inverse


def _inverted_pendulum(env, before, after, left, actions):
    del env, before, left, actions
    observations = np.concatenate([after.qpos, after.qvel], axis=1)
    terminated = ~np.isfinite(observations).all(axis=1) | (np.abs(observations[:, 1]) > 0.2)
    return observations, (~terminated).astype(np.float64), terminated


def _double_pendulum(env, before, after, left, actions):
    del before, actions
    x, y, force = left.T
    terminated = y <= 1
    alive = env._healthy_reward * ~terminated
    distance = 0.01 * x**2 + (y - 2) ** 2
    velocity = 1e-3 * after.qvel[:, 1] ** 2 + 5e-3 * after.qvel[:, 2] ** 2
    angles = after.qpos[:, 1:]
    speeds, force = np.clip(after.qvel, -10, 10), np.clip(force, -10, 10)[:, None]
    seen = [after.qpos[:, :1], np.sin(angles), np.cos(angles), speeds, force]
    return np.concatenate(seen, axis=1), alive - distance - velocity, terminated


def _double_pendulum_left(env):
    x, _, y = env.data.site_xpos[0]
    return np.array([x, y, env.data.qfrc_constraint[0]])


def _reacher(env, before, after, left, actions):
    del before
    angles = after.qpos[:, :2]
    seen = [np.cos(angles), np.sin(angles), after.qpos[:, 2:], after.qvel[:, :2], left[:, :2]]
    distance = env._reward_dist_weight * np.linalg.norm(left, axis=1)
    control = env._reward_control_weight * np.square(actions).sum(axis=1)
    return np.concatenate(seen, axis=1), -distance - control, np.zeros(len(left), bool)


def _reacher_left(env):
    return env.get_body_com("fingertip") - env.get_body_com("target")


def _hopper(env, before, after, left, actions):
    del left
    inside = lambda value, bounds: (bounds[0] < value) & (value < bounds[1])  # noqa: E731
    others = np.concatenate([after.qpos[:, 2:], after.qvel], axis=1)
    healthy = (
        inside(others, env._healthy_state_range).all(axis=1)
        & inside(after.qpos[:, 1], env._healthy_z_range)
        & inside(after.qpos[:, 2], env._healthy_angle_range)
    )
    forward = env._forward_reward_weight * (after.qpos[:, 0] - before.qpos[:, 0]) / env.dt
    control = env._ctrl_cost_weight * np.square(actions).sum(axis=1)
    shown = after.qpos[:, int(env._exclude_current_positions_from_observation) :]
    observations = np.concatenate([shown, np.clip(after.qvel, -10, 10)], axis=1)
    rewards = forward + env._healthy_reward * healthy - control
    return observations, rewards, ~healthy & env._terminate_when_unhealthy


FORMULAS = {
    f"gymnasium.envs.mujoco.{module}": formula
    for module, formula in {
        "inverted_pendulum_v5": _Formula(_inverted_pendulum),
        "inverted_double_pendulum_v5": _Formula(_double_pendulum, _double_pendulum_left),
        "reacher_v5": _Formula(_reacher, _reacher_left),
        "hopper_v5": _Formula(_hopper),
    }.items()
}
"""By the module of the environment's class: a subclass elsewhere may do otherwise."""
