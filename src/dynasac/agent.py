"""DynaSAC: the whole program as one object, with the methods stable-baselines3 users expect."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from . import checkpoint, evaluation, planning, presets, sac, training
from .errors import UsageError
from .models import KNOWN_PHYSICS, DynamicsModel, check_contract, known_model, model_from_file
from .presets import Config
from .runs import plain
from .sac import SACState
from .spaces import Spaces, spaces_of
from .training import Task, TrainingState


class Silent:
    """An observer of training that says nothing."""

    def progress(self, state: TrainingState, message: str) -> None:
        pass

    def episode(self, state: TrainingState) -> None:
        pass


class DynaSAC:
    """Soft Actor-Critic that plans with a dynamics model.

        agent = DynaSAC("Pendulum-v1")
        agent.learn(real_episodes=0)
        action, _ = agent.predict(observation, deterministic=True)

    Arguments:
        env: a Gymnasium environment or its id, with vector observations and bounded continuous
            actions.
        model: a `DynamicsModel`; "auto" for the physics that is known for the environment's id;
            "FILE.py:Class" for a model of one's own; "none" for plain SAC.
        config: the settings; those of `presets.DEFAULT`, or of plain SAC without a model, if None.
        seed: decides everything random; equal seeds give equal bytes on one machine.

    Raises:
        UsageError: something about the environment, model or settings is wrong; in one line.
    """

    def __init__(
        self,
        env: gym.Env | str,
        model: DynamicsModel | str = "auto",
        config: Config | None = None,
        seed: int = 0,
    ):
        self.env = evaluation.make(env) if isinstance(env, str) else env
        self.env_id = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
        spaces = spaces_of(self.env)
        self.model = _resolved(model, self.env_id, spaces)
        self.config = config or presets.preset("default", with_model=self.model is not None)
        presets.check(self.config)
        learner = sac.for_episodes_of(spaces.episode_steps, self.config.sac)
        planned = planning.for_spaces(spaces, self.config.planning)
        self.config = dataclasses.replace(self.config, sac=learner, planning=planned)
        if not 0 <= seed < 2**31:
            raise UsageError(f"--seed {seed}: from 0 to {2**31 - 1}")
        if self.model is not None:
            spaces = planning.visited_box(self.model, spaces, seed)
        self.spaces: Spaces = spaces
        self.seed = seed
        self.task = Task(self.env, spaces, self.model, self.config, seed)
        self.state: TrainingState = training.initial(self.task)
        self._samples = 0

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        real_episodes: int | None = None,
        progress_bar: bool = False,
        observer: training.Observer | None = None,
    ) -> "DynaSAC":
        """Train until so many real episodes, or at least so many real steps, lie behind.

        With neither, the settings decide. `real_episodes=0` plans in the model alone. Called again,
        it goes on from where it is; Ctrl-C leaves what was learned so far.
        """
        if total_timesteps is not None and real_episodes is not None:
            raise UsageError("give total_timesteps or real_episodes, not both")
        if real_episodes is None and total_timesteps is None:
            real_episodes = self.config.real_episodes
        if min(real_episodes or 0, total_timesteps or 0) < 0:
            raise UsageError("counts of episodes and steps cannot be negative")
        observer = observer or Silent()
        if progress_bar:
            from .progress import Bar

            with Bar(self.task, observer, real_episodes, total_timesteps) as bar:
                self._train(bar, real_episodes, total_timesteps)
        else:
            self._train(observer, real_episodes, total_timesteps)
        return self

    def _train(self, observer, real_episodes: int | None, total_timesteps: int | None) -> None:
        self.state = training.train(
            self.task, self.state, _Keeper(self, observer), real_episodes, total_timesteps
        )

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        *,
        lookahead: int = 0,
    ) -> tuple[np.ndarray, Any]:
        """Actions in the environment's units, for one observation or a batch.

        Arguments:
            state, episode_start: accepted and handed back as stable-baselines3 does; the policy has
                no memory.
            deterministic: the mean of the policy instead of a sample.
            lookahead: 1 tries many actions in the model, one step ahead with the critics behind it,
                and takes the best. Needs a model; always deterministic.
        """
        del episode_start
        batch = np.asarray(observation, np.float32)
        size = self.spaces.observation.size
        if batch.shape[-1:] != (size,) or batch.ndim > 2:
            raise UsageError(
                f"an observation has shape ({size},) or (n, {size}), not {batch.shape}"
            )
        if lookahead not in (0, 1):
            raise UsageError(f"lookahead={lookahead}: 0 and 1 are supported")
        learner = self.state.sac
        rows = jnp.asarray(np.atleast_2d(batch))
        if lookahead:
            if self.model is None:
                raise UsageError("lookahead needs a model; this agent has none")
            action = planning.lookahead_action(
                learner, self.model, rows, self.config.sac, self.config.planning, self.spaces
            )
        elif deterministic:
            action = _mode(learner, rows, self.spaces)
        else:
            self._samples += 1
            key = jax.random.fold_in(jax.random.key(self.seed), self._samples)
            action = _sample(learner, rows, self.spaces, key)
        return np.asarray(action).reshape(*batch.shape[:-1], self.spaces.action.size), state

    def evaluate(
        self, episodes: int = 100, first_seed: int = evaluation.FIRST_SEED, lookahead: int = 0
    ) -> evaluation.Evaluation:
        """Run the deterministic policy; episode k starts from `reset(seed=first_seed + k)`.

        Makes environments of its own where the agent's has an id, so that none is disturbed.
        """
        spec = self.env.spec

        def policy(observations):
            return self.predict(observations, deterministic=True, lookahead=lookahead)[0]

        def make_env():
            if spec is None:
                raise UsageError("evaluate needs an environment made by gymnasium.make")
            return gym.make(spec, disable_env_checker=True)

        return evaluation.evaluate(
            policy, make_env, episodes, self.spaces.episode_steps, first_seed
        )

    def save(self, path: str | Path) -> None:
        """Write the policy, its critics and its scales into the folder `path`: arrays and JSON."""
        stem = Path(path) / "policy"
        description = {
            "env_id": self.env_id,
            "seed": self.seed,
            "model": type(self.model).__name__ if self.model else "none",
            "config": plain(self.config),
        }
        checkpoint.save_tree(stem, self._policy_tree(), description)

    @classmethod
    def load(
        cls, path: str | Path, env: gym.Env | str, model: DynamicsModel | str | None = None
    ) -> "DynaSAC":
        """Read what `save` wrote. The caller says which environment and model; no file does.

        Arguments:
            model: as for the class; None for the known physics of the environment, if there is any.

        Raises:
            UsageError: the files are missing or damaged, or do not fit the environment.
        """
        stem = Path(path) / "policy"
        description = checkpoint.read_json(stem.with_suffix(".json"))
        config = presets.from_plain(description.get("config", {}))
        seed = description.get("seed")
        if not isinstance(seed, int):
            raise UsageError(f"{stem}.json has the seed {seed!r}, not a number")
        agent = cls(env, _or_none(model, env), config, seed)
        agent._restore(checkpoint.load_tree(stem, agent._policy_tree()))
        return agent

    def save_checkpoint(self, folder: Path) -> None:
        """Write all that is needed to go on: learner, replay and counts."""
        description = {"env_id": self.env_id, "seed": self.seed, "config": plain(self.config)}
        checkpoint.save_tree(folder / "state", self._training_tree(), description)

    def load_checkpoint(self, folder: Path) -> None:
        """Go back to what `save_checkpoint` wrote for an agent with the same settings.

        Raises:
            UsageError: the files are missing or damaged, or the settings differ.
        """
        written = checkpoint.read_json(folder / "state.json")
        ours = json.loads(json.dumps(plain(self.config)))
        theirs = written.get("config", {})
        changed = [
            name for name in ours if ours[name] != theirs.get(name) and name != "real_episodes"
        ]
        if changed or written.get("seed") != self.seed:
            raise UsageError(
                f"the run in {folder.parent} has other settings: {', '.join(changed) or 'seed'}"
            )
        policy, replay, counts, train_return = checkpoint.load_tree(
            folder / "state", self._training_tree()
        )
        self._restore(policy)
        counts = training.Counts(*(int(count) for count in counts))
        self.state = TrainingState(self.state.sac, replay, counts, float(train_return[0]))

    def _policy_tree(self):
        return self.state.sac, self.spaces.observation, self.spaces.action

    def _training_tree(self):
        counts = np.array(self.state.counts, np.int64)
        return self._policy_tree(), self.state.replay, counts, np.array([self.state.train_return])

    def _restore(self, policy) -> None:
        learner, observation, action = policy
        self.spaces = self.spaces._replace(observation=observation, action=action)
        self.task = self.task._replace(spaces=self.spaces)
        self.state = self.state._replace(sac=learner)


class _Keeper:
    """Hands each new state to the agent, so that an interrupted one keeps what it learned."""

    def __init__(self, agent: DynaSAC, observer: training.Observer):
        self._agent, self._observer = agent, observer

    def progress(self, state: TrainingState, message: str) -> None:
        self._agent.state = state
        self._observer.progress(state, message)

    def episode(self, state: TrainingState) -> None:
        self._agent.state = state
        self._observer.episode(state)


def _or_none(model: DynamicsModel | str | None, env: gym.Env | str) -> DynamicsModel | str:
    """The known physics of an environment where none was named, or none."""
    if model is not None:
        return model
    env_id = env if isinstance(env, str) else env.spec.id if env.spec else ""
    return "auto" if env_id in KNOWN_PHYSICS else "none"


def _resolved(asked: DynamicsModel | str, env_id: str, spaces: Spaces) -> DynamicsModel | None:
    """The model that was asked for, checked, with its parameters as arrays."""
    if isinstance(asked, DynamicsModel):
        model = asked
    elif asked == "none":
        return None
    else:
        model = known_model(env_id) if asked == "auto" else model_from_file(asked)
    # as arrays, other values of the parameters need no recompilation
    model = jax.tree.map(
        lambda leaf: jnp.asarray(np.float32(leaf)) if isinstance(leaf, float) else leaf, model
    )
    check_contract(model, spaces.observation.size, spaces.action.size)
    return model


@eqx.filter_jit
def _mode(learner: SACState, observations, spaces: Spaces):
    x = spaces.observation.to_unit(observations)
    return spaces.action.from_unit(learner.averaged_actor.mode(x))


@eqx.filter_jit
def _sample(learner: SACState, observations, spaces: Spaces, key):
    noise = jax.random.normal(key, (len(observations), spaces.action.size))
    unit, _ = learner.actor.sample(spaces.observation.to_unit(observations), noise)
    return spaces.action.from_unit(unit)
