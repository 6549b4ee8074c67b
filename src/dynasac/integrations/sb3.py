"""Dyna planning for agents of stable-baselines3.

    from stable_baselines3 import SAC
    from dynasac import Pendulum
    from dynasac.integrations.sb3 import DynaCallback

    SAC("MlpPolicy", "Pendulum-v1").learn(2000, callback=DynaCallback(Pendulum()))

Torch holds the policy and JAX the model, so neither compiles the other: many synthetic transitions
are made at once, the actions by the policy, the steps by the compiled model, and the agent's own
`train` then draws its batches from them. The agent's replay holds real transitions alone,
throughout.
"""

# pyright: reportMissingImports=false
# stable-baselines3 is installed by `make sb3` alone, and types are checked without it too

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.registration import EnvSpec

from .. import planning, replay, simulation
from ..adapt import ladder
from ..adapt.ladder import Adaptation, Asked
from ..agent import resolved
from ..errors import UsageError, one_line
from ..models import DynamicsModel, HostModel
from ..models.ensemble import EnsembleConfig
from ..planning import PlanningConfig, StartWeights
from ..replay import ReplayState
from ..simulation import Simulation
from ..spaces import Box, Spaces, spaces_between
from ..types import Transition

try:
    import torch
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.type_aliases import ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecNormalize
except ModuleNotFoundError as error:
    raise UsageError(f"there is no module {error.name}: pip install 'dynasac[sb3]'") from None

if not jax.config.values.get("jax_platforms"):  # the GPU, if there is one, is torch's
    jax.config.update("jax_platforms", "cpu")

ROUND = 50
"""updates whose synthetic transitions are made together, under the policy before the first"""

RECENT = 50_000
"""real transitions, the last ones, that the model is tried on"""

OBSERVED = 4096
"""observations drawn from the replay for rollouts to begin from"""

SIMULATED = 100_000
"""synthetic transitions kept of a host model, whose steps are slow"""

ALREADY_LOGGED = {"train/n_updates", "train/learning_rate"}
"""of what the agent logs, the same at its updates on real transitions"""


class DynaCallback(BaseCallback):
    """Adds planning with a model to a SAC, TD3 or DDPG agent, or one that derives from them.

    Planning happens before the first real step and after each `every` of them: gradient steps of
    the agent's own `train`, on batches of real and synthetic transitions, the synthetic ones always
    new. The updates at real steps, the replay and the logger stay as they are without it. With
    `VecNormalize`, or a model that is to be learned, the first planning waits for the first `every`
    steps.

    It logs dyna/updates and dyna/synthetic_transitions, both counted from the beginning,
    dyna/real_fraction, dyna/model_error (a share of how much observations move), and
    dyna/actor_loss, dyna/critic_loss and the like, of the last updates of a phase.

    Arguments:
        model: as for `dynasac.DynaSAC`: a `DynamicsModel` or `HostModel`, "auto" for what is known
            for the environment's id, "FILE.py:Class", "simulator", or "ensemble" for one that is
            learned from the agent's replay. Actions come to it in the environment's unit.
        every: real steps from one planning to the next, of all environments together.
        first_updates: gradient updates of the first planning.
        updates: gradient updates of each later one.
        real_fraction: least share of real transitions in a batch, once there are any; the model's
            measured error is the share if it is larger. At 1 nothing is planned any more.
        starts: where synthetic transitions begin.
        horizon: steps from there, fewer where they terminate. Host models have episodes of their
            own instead, which begin at resets; `starts`, `horizon` and `exploration` do not
            concern them.
        exploration: share of first actions that are uniform instead of the policy's.
        adapt: what is made of the model after each `every` real steps, as in `dynasac.Config`:
            "auto" for what the replay shows to be best, "none" to believe it as it is.
        verbose: 1 prints what is decided about the model.

    Raises:
        UsageError: when learning begins: the agent, its spaces or the model are not such that this
            can work; in one line that says what to do.
    """

    def __init__(
        self,
        model: DynamicsModel | HostModel | str = "auto",
        *,
        every: int = 200,
        first_updates: int = 3000,
        updates: int = 1000,
        real_fraction: float = 0.1,
        starts: StartWeights = StartWeights(replay=1.0, space=1.0),  # noqa: B008  (frozen)
        horizon: int = 1,
        exploration: float = 0.5,
        adapt: Asked = "auto",
        verbose: int = 0,
    ):
        super().__init__(verbose)
        for name, count in (("every", every), ("horizon", horizon)):
            if count < 1:
                raise UsageError(f"{name}={count}: must be at least 1")
        for name, count in (("first_updates", first_updates), ("updates", updates)):
            if count < 0:
                raise UsageError(f"{name}={count}: must be at least 0")
        for name, share in (("real_fraction", real_fraction), ("exploration", exploration)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name}={share}: must be from 0 to 1")
        self.every, self.first_updates, self.updates = every, first_updates, updates
        self.planned_updates = 0
        self.synthetic_transitions = 0
        self._asked = model
        self._adapt: Asked = "ensemble" if model == "ensemble" else adapt
        self._config = PlanningConfig(
            real_fraction=real_fraction, starts=starts, horizon=horizon, exploration=exploration
        )
        self._planner: _Planner | None = None
        self._next = 0
        self._phases = 0

    @property
    def dynamics(self) -> DynamicsModel | HostModel | None:
        """The model at hand: as it was given, or what real transitions have made of it."""
        return self._planner.adaptation.model if self._planner else None

    def _init_callback(self) -> None:
        if self._planner is None or self._planner.agent is not self.model:
            self._planner = _Planner(self.model, self._asked, self._adapt, self._config)
            self._phases = self.planned_updates = self.synthetic_transitions = 0

    def _on_training_start(self) -> None:
        assert self._planner is not None
        self._next = self.num_timesteps + self.every
        if not self._phases and self._planner.scale is None:
            self._plan(self._planner)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # not at the step itself, whose transition is not in the replay yet
        if self.num_timesteps >= self._next:
            assert self._planner is not None
            self._next = self.num_timesteps + self.every
            self._plan(self._planner)

    def _plan(self, planner: "_Planner") -> None:
        adaptation = planner.adapt()
        if self.verbose and adaptation.sentence:
            print(f"dyna: {adaptation.sentence}")
        share = float(adaptation.trust.real_fraction)
        if adaptation.model is not None and share < 1:
            updates = self.updates if self._phases else self.first_updates
            losses, made = planner.plan(updates)
            self._phases += 1
            self.planned_updates += updates
            self.synthetic_transitions += made
            for name, value in losses.items():
                self.logger.record(f"dyna/{name}", value)
        self.logger.record("dyna/updates", self.planned_updates)
        self.logger.record("dyna/synthetic_transitions", self.synthetic_transitions)
        self.logger.record("dyna/real_fraction", share)
        if adaptation.error is not None:
            self.logger.record("dyna/model_error", adaptation.error)


class _Planner:
    """Planning for one agent: what is known of its environment, and how far that is believed."""

    def __init__(
        self,
        agent: Any,
        asked: DynamicsModel | HostModel | str,
        adapt: Asked,
        config: PlanningConfig,
    ):
        _check_agent(agent)
        if asked == "none":
            raise UsageError("DynaCallback plans with a model; without one leave the callback out")
        spec = _spec(agent)
        name = spec.id if spec else "the agent's environment"
        steps = spec.max_episode_steps if spec else None
        spaces = spaces_between(agent.observation_space, agent.action_space, name, steps)
        with _another(spec if asked in ("auto", "simulator") else None) as env:
            given = resolved(asked, env, spaces)
        if adapt in ("identify", "residual") and not isinstance(given, DynamicsModel):
            raise UsageError(f"adapt={adapt!r} needs a model that is written as equations")
        self.agent = agent
        self._rng = np.random.default_rng(agent.seed)
        self._seed = int(self._rng.integers(2**31))
        self._config = planning.for_spaces(spaces, config)
        self._simulation: Simulation | None = None
        if isinstance(given, DynamicsModel):
            spaces = planning.visited_box(given, spaces, self._seed)
        elif given is not None:
            spaces = simulation.visited_box(given, spaces, self._seed)
            self._simulation = simulation.create(given, spaces, config, SIMULATED, self._seed)
        self._given, self._spaces = given, spaces
        self._adapt: Asked = adapt
        self.adaptation = ladder.at_hand(given, self._config)

    @property
    def scale(self) -> VecNormalize | None:
        """What stands between the observations and rewards of the replay and the networks."""
        return self.agent._vec_normalize_env

    def adapt(self) -> Adaptation:
        """Try the model on the agent's replay, and make the best of it."""
        if self._adapt != "none" and self.agent.replay_buffer.size():
            self.adaptation = ladder.climb(
                self._given,
                self._adapt,
                _transitions(self.agent.replay_buffer),
                self.agent.num_timesteps,
                self.adaptation,
                self._spaces,
                self._config,
                EnsembleConfig(),
                self._seed,
            )
        return self.adaptation

    def plan(self, updates: int) -> tuple[dict[str, Any], int]:
        """Gradient steps of the agent on real and synthetic transitions.

        Returns what the agent logged of the last of them, and how many transitions were made.
        """
        agent, made = self.agent, 0
        mixed = _Mixed(agent, float(self.adaptation.trust.real_fraction), self._rng)
        with _lent(agent, mixed) as logged:
            for first in range(0, updates, ROUND):
                mixed.synthetic, count = self._synthetic(min(ROUND, updates), agent.batch_size)
                made += count
                agent.train(min(ROUND, updates - first), agent.batch_size)
        kept = {name: value for name, value in logged.items() if name not in ALREADY_LOGGED}
        return {name.removeprefix("train/"): value for name, value in kept.items()}, made

    def _synthetic(self, updates: int, batch_size: int) -> tuple[Transition, int]:
        """New transitions under the present policy, for some updates, and how many were made."""
        if self._simulation is None:
            rows = self._rollouts(updates * batch_size)
            return rows, len(rows.reward)
        episodes = self._config.simulations
        steps = max(1, updates * self._config.simulated_transitions // episodes)
        model = self.adaptation.model
        assert isinstance(model, HostModel)
        self._simulation = simulation.follow(
            model, self._simulated_action, self._simulation, steps, self._spaces, self._rng
        )
        rows = _draw(self._simulation.replay, updates * batch_size, self._key())
        return jax.tree.map(np.asarray, rows), steps * episodes

    def _rollouts(self, count: int) -> Transition:
        """At most `count` transitions of rollouts in a compiled model, as NumPy arrays.

        `planning.rollout` with a policy that runs elsewhere: rows that did not happen are left out.
        """
        model, trust, config = self.adaptation.model, self.adaptation.trust, self._config
        spaces = ladder.seen(self.adaptation, self._spaces)
        starts = -(-count // config.horizon)
        observed = self._observed() if config.starts.replay else self._observed(0)
        observations = np.asarray(
            _starts(model, observed, config.starts, spaces.observation, starts, self._key())
        )
        alive, kept = np.ones(starts, bool), []
        for step in range(min(config.horizon, int(trust.horizon))):
            uniform = round(config.exploration * starts) if step == 0 else 0
            unit = np.concatenate(
                [self._actions(observations[: starts - uniform]), self._uniform(uniform)]
            )
            found = _steps(model, jnp.asarray(observations), jnp.asarray(unit), spaces, self._key())
            rows, uncertainty = jax.tree.map(np.asarray, found)
            finite = np.isfinite(rows.next_observation).all(1) & np.isfinite(rows.reward)
            happened = alive & finite & (uncertainty <= float(trust.uncertainty))
            kept.append(jax.tree.map(lambda field, happened=happened: field[happened], rows))
            alive = happened & ~rows.terminated
            observations = np.where(alive[:, None], rows.next_observation, observations)
        return jax.tree.map(lambda *fields: np.concatenate(fields), *kept)

    def _observed(self, rows: int = OBSERVED) -> ReplayState:
        """Some of the observations in the agent's replay, where rollouts can begin."""
        buffer = self.agent.replay_buffer
        seen = buffer.observations[: buffer.size()].reshape(-1, self._spaces.observation.size)
        size = min(rows, len(seen))
        state = replay.create(max(rows, 1), self._spaces.observation.size, self._spaces.action.size)
        drawn = np.zeros(state.transitions.observation.shape, np.float32)
        if size:
            drawn[:] = seen[self._rng.integers(len(seen), size=len(drawn))]
        return eqx.tree_at(
            lambda state: (state.transitions.observation, state.size),
            state,
            (jnp.asarray(drawn), jnp.asarray(np.int32(len(drawn) if size else 0))),
        )

    def _actions(self, observations: np.ndarray) -> np.ndarray:
        """What the agent does, in [-1, 1], as its replay holds it."""
        if not len(observations):
            return self._uniform(0)
        seen = observations if self.scale is None else self.scale.normalize_obs(observations)
        action, _ = self.agent.predict(seen, deterministic=False)
        return np.clip(self.agent.policy.scale_action(action), -1, 1).astype(np.float32)

    def _uniform(self, count: int) -> np.ndarray:
        shape = (count, self._spaces.action.size)
        return self._rng.uniform(-1, 1, shape).astype(np.float32)

    def _simulated_action(self, step: int, observations: np.ndarray) -> tuple[Any, Any]:
        del step
        unit = self._actions(observations)
        explored = self._rng.uniform(size=len(unit)) < simulation.EXPLORATION
        unit[explored] = self._uniform(int(explored.sum()))
        return unit, self._spaces.action.from_unit(jnp.asarray(unit))

    def _key(self) -> jax.Array:
        return jax.random.key(self._rng.integers(2**31))


class _Mixed:
    """What an agent draws from while it plans: its own replay, and synthetic transitions."""

    synthetic: Transition
    """NumPy arrays, in the units of the agent's replay"""

    def __init__(self, agent: Any, share: float, rng: np.random.Generator):
        self._agent, self._real = agent, agent.replay_buffer
        self._share, self._rng = share, rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Real rows first, synthetic ones behind."""
        there = len(self.synthetic.reward)
        real = round(self._share * batch_size) if there else batch_size
        real = real if self._real.size() else 0
        if not there and not real:
            raise UsageError("no step of the model that DynaCallback plans with is a finite number")
        if real == batch_size:
            return self._real.sample(batch_size, env=env)
        made = self._made(self._rng.integers(there, size=batch_size - real), env)
        if not real:
            return made
        drawn = self._real.sample(real, env=env)
        if getattr(drawn, "discounts", None) is not None:  # of several steps
            made = made._replace(discounts=torch.full_like(made.rewards, self._agent.gamma))
        joined = {
            name: torch.cat([rows, getattr(made, name)])
            for name, rows in drawn._asdict().items()
            if rows is not None
        }
        return ReplayBufferSamples(**joined)

    def _made(self, rows: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        """Synthetic rows as the agent's replay would hand them out."""
        chosen = jax.tree.map(lambda field: field[rows], self.synthetic)
        observation, following = chosen.observation, chosen.next_observation
        reward = chosen.reward[:, None]
        if env is not None:
            observation, following = map(env.normalize_obs, (observation, following))
            reward = env.normalize_reward(reward).astype(np.float32)
        ended = chosen.terminated[:, None].astype(np.float32)
        fields = observation, chosen.action, following, ended, reward
        return ReplayBufferSamples(*map(self._real.to_torch, fields))


@contextmanager
def _lent(agent: Any, source: _Mixed) -> Iterator[dict[str, Any]]:
    """Another source of batches for an agent, and a log of its own; both are taken back.

    Yields what was logged.
    """
    before = agent.replay_buffer, agent._logger
    agent.replay_buffer, agent._logger = source, Logger(folder=None, output_formats=[])
    try:
        yield agent._logger.name_to_value
    finally:
        agent.replay_buffer, agent._logger = before


def _transitions(buffer: ReplayBuffer) -> Transition:
    """The last of the transitions in a replay, one environment after the other, in time order."""
    first = buffer.pos if buffer.full else 0

    def in_order(ring: np.ndarray, kind: type = np.float32) -> jax.Array:
        rows = np.roll(ring[: buffer.size()], -first, axis=0)[-(RECENT // buffer.n_envs) :]
        return jnp.asarray(buffer.swap_and_flatten(rows).astype(kind))

    ended = buffer.dones * (1 - buffer.timeouts)
    return Transition(
        observation=in_order(buffer.observations),
        action=in_order(buffer.actions),
        reward=in_order(buffer.rewards)[:, 0],
        next_observation=in_order(buffer.next_observations),
        terminated=in_order(ended, bool)[:, 0],
    )


def _check_agent(agent: Any) -> None:
    """Refuse agents whose replay cannot be joined by synthetic transitions."""
    if not isinstance(agent, OffPolicyAlgorithm):
        raise UsageError(
            f"{type(agent).__name__} learns from no replay: DynaCallback is for SAC, TD3 and DDPG"
        )
    buffer = agent.replay_buffer
    if isinstance(buffer, HerReplayBuffer):
        raise UsageError(
            "HerReplayBuffer relabels whole episodes, which synthetic transitions do not belong "
            "to: wrap the environment in gymnasium.wrappers.FlattenObservation and leave out "
            "replay_buffer_class"
        )
    if agent.optimize_memory_usage:
        raise UsageError(
            "the model is tried on the replay's transitions: make the agent with "
            "optimize_memory_usage=False"
        )
    if not isinstance(buffer, ReplayBuffer):
        raise UsageError(
            f"{type(buffer).__name__} is not one of stable-baselines3's replays: leave out "
            "replay_buffer_class"
        )


def _spec(agent: Any) -> EnvSpec | None:
    """How the agent's environments were made, without what stable-baselines3 put around them."""
    try:
        spec = agent.get_env().get_attr("spec")[0]
    except AttributeError:
        return None
    if spec is None:
        return None
    spec = copy.copy(spec)
    spec.additional_wrappers = tuple(
        wrapper for wrapper in spec.additional_wrappers if wrapper.name != "Monitor"
    )
    return spec


@contextmanager
def _another(spec: EnvSpec | None) -> Iterator[gym.Env | None]:
    """An environment of one's own like the agent's, to ask what is known of it."""
    if spec is None:
        yield None
        return
    try:
        env = gym.make(spec, disable_env_checker=True)
    except Exception as error:  # the constructor and the wrappers are somebody else's code
        raise UsageError(
            f"{spec.id} cannot be made again ({one_line(error)}): give the model itself, or "
            "FILE.py:Class"
        ) from None
    try:
        yield env
    finally:
        env.close()


@eqx.filter_jit
def _starts(model, observed: ReplayState, weights: StartWeights, space: Box, count: int, key):
    return planning.start_observations(model, observed, weights, space, space, count, key)


@eqx.filter_jit
def _steps(model, observations, unit, spaces: Spaces, key):
    """One step from each observation, and how uncertain the model is of it."""
    keys = jax.random.split(key, len(observations))
    found = jax.vmap(model.step)(observations, spaces.action.from_unit(unit), keys)
    rows = Transition(observations, unit, found.reward, found.next_observation, found.terminated)
    return rows, found.uncertainty


_draw = eqx.filter_jit(lambda memory, count, key: replay.sample(memory, key, count))
