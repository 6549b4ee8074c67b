"""DynaSAC: the whole program as one object, with the methods stable-baselines3 users expect."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from . import (
    border,
    checkpoint,
    datasets,
    evaluation,
    memory,
    planning,
    presets,
    sac,
    simulation,
    training,
)
from .adapt import ladder
from .adapt.ladder import Adaptation
from .datasets import USUAL_NAMES, Columns
from .errors import UsageError
from .models import (
    KNOWN_PHYSICS,
    DynamicsModel,
    HostModel,
    as_arrays,
    check_contract,
    known_model,
    model_from_file,
    own_simulator,
)
from .networks import Actor
from .presets import Config
from .runs import flat, plain
from .spaces import Box, Spaces, spaces_of
from .training import Phase, Task, TrainingState
from .types import Transition

POLICY, MODEL = "policy.safetensors", "model.safetensors"


class Silent:
    """An observer of training that says nothing."""

    def progress(self, state: TrainingState, phase: Phase) -> None:
        pass

    def episode(self, state: TrainingState) -> bool | None:
        pass


Callback = Callable[["DynaSAC", dict[str, Any]], bool | None]
"""Called with the agent and a row of metrics, by the names of metrics.csv, once before the first
real episode and once after each, and after logged transitions that came later. Returns None or a
bool, of which False stops training."""


@runtime_checkable
class Rigs(Protocol):
    """Real environments of the same kind that can be set to work."""

    def fleet(self, task: Task, begun: int) -> training.Fleet:
        """Start them, for an agent that has had so many real episodes.

        Raises:
            UsageError: in one line, why they cannot be started.
        """
        ...


if TYPE_CHECKING:
    _OfTheClass = classmethod
else:

    class _OfTheClass(classmethod):
        """A class method that an instance refuses: called on one, it would leave that as it is."""

        def __get__(self, instance, owner=None):
            if instance is None:
                return super().__get__(None, owner)

            def refused(*_, **__):
                name = self.__name__
                raise UsageError(f"{name} makes a new agent: agent = DynaSAC.{name}(path, env)")

            return refused


class DynaSAC:
    """Soft Actor-Critic that plans with a dynamics model.

        agent = DynaSAC("Pendulum-v1")
        agent.learn(real_episodes=0)
        action, _ = agent.predict(observation, deterministic=True)

    Arguments:
        env: a Gymnasium environment or its id, with vector observations and bounded continuous
            actions.
        model: a `DynamicsModel` or `HostModel`; "auto" for what is known for the environment's id,
            its physics or its simulator; "FILE.py:Class" for a model of one's own; "simulator" for
            another instance of the environment itself; "ensemble" for one that is learned from real
            transitions alone; "none" for plain SAC.
        config: the settings; those of `presets.DEFAULT`, or of plain SAC without a model, if None.
        seed: decides everything random; equal seeds give equal bytes on one machine.

    Raises:
        UsageError: something about the environment, model or settings is wrong, or they need more
            memory than there is (`memory`); in one line.
    """

    def __init__(
        self,
        env: gym.Env | str,
        model: DynamicsModel | HostModel | str = "auto",
        config: Config | None = None,
        seed: int = 0,
    ):
        self.env = evaluation.make(env) if isinstance(env, str) else env
        self.env_id = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
        spaces = spaces_of(self.env)
        given = resolved(model, self.env, spaces)
        named = model if isinstance(model, str) else "auto"
        self.config = config or presets.preset("default", named)
        adapt = presets.adapting(named, self.config.adapt)
        self.config = dataclasses.replace(self.config, adapt=adapt)
        if self.config.adapt in ("identify", "residual") and not isinstance(given, DynamicsModel):
            raise UsageError(
                f"--adapt {self.config.adapt} needs a model that is written as equations"
            )
        presets.check(self.config)
        planned = planning.for_spaces(spaces, self.config.planning)
        self.config = dataclasses.replace(self.config, planning=planned)
        if not 0 <= seed < 2**31:
            raise UsageError(f"--seed {seed}: from 0 to {2**31 - 1}")
        self.memory = memory.needed(self.config, memory.sizes_of(spaces, given))
        memory.check(self.memory, memory.available())
        learner, size = self.config.sac, 1.0
        undecided = learner.reward_scale is None
        equations = isinstance(given, DynamicsModel)
        if equations:
            spaces = planning.visited_box(given, spaces, seed)
            size = planning.reward_size(given, spaces) if undecided else size
        elif given is not None:
            spaces = simulation.visited_box(given, spaces, seed)
            size = simulation.reward_size(given, spaces) if undecided else size
            # its episodes begin where real ones do: no hopeless states are there to drown others
            learner = dataclasses.replace(learner, huber_delta=None)
        bounded = all(spaces.bounded)
        learner = sac.for_task(learner, spaces.episode_steps, bounded, size, equations)
        self.config = dataclasses.replace(self.config, sac=learner)
        self.seed = seed
        env = border.timed(self.env, self.config.step_seconds)
        self.task = Task(env, spaces, given, self.config, seed)
        self.state: TrainingState = training.initial(self.task)
        self._samples = 0
        self._learning = False

    @property
    def spaces(self) -> Spaces:
        """How observations and actions are scaled."""
        return training.spaces_at(self.task, self.state.adaptation)

    @property
    def model(self) -> DynamicsModel | HostModel | None:
        """The model at hand: as it was given, or what real transitions have made of it."""
        return self.state.adaptation.model

    def remember(self, data: Transition | str | Path, columns: Columns = USUAL_NAMES) -> "DynaSAC":
        """Take logged real transitions in, before real episodes, instead of them or in between.

            DynaSAC("Pendulum-v1", model).remember("log.csv").learn(real_episodes=0)

        The next `learn` tries the model on them, adapts it to them and plans from them, before any
        real episode. Without a model it makes as many updates on them as if they were collected.

        Arguments:
            data: a CSV file, `minari:ID` or the directory of a Minari data set; or transitions
                along one leading axis in the order of time, actions in [-1, 1].
            columns: the names in a CSV file. Without a column of rewards they are the model's.

        Raises:
            UsageError: the data cannot be read, are not the environment's (`datasets.read`), or are
                more than the replay holds.
        """
        if self._learning:
            raise UsageError("remember belongs before learn or after it, not into a callback")
        if isinstance(data, Transition):
            transitions = datasets.check_rows(data, self.task.spaces)
        else:
            read = datasets.read(data, self.task.spaces, columns, self.task.model)
            transitions = read.transitions
        self.state = training.remember(self.task, self.state, transitions)
        return self

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: Callback | Sequence[Callback] | None = None,
        *,
        real_episodes: int | None = None,
        progress_bar: bool = False,
        observer: training.Observer | None = None,
        rigs: Rigs | None = None,
    ) -> "DynaSAC":
        """Train until so many real episodes, or at least so many real steps, lie behind.

        With neither, the settings decide. `real_episodes=0` plans in the model alone. Called again,
        it goes on from where it is; Ctrl-C leaves what was learned so far.

        Arguments:
            callback: a function of the agent and a row of metrics, or several: to log, to save, to
                stop early by returning False (see `Callback`).
            progress_bar: a bar in terminals and notebooks, a line now and then elsewhere.
            observer: sees every chunk of updates too (`training.Observer`).
            rigs: several real environments that collect meanwhile (`dynasac.rigs.Rigs`).
        """
        callbacks = [] if callback is None else [callback] if callable(callback) else list(callback)
        for each in callbacks:
            if not callable(each):
                raise UsageError(f"callback={each!r}: give functions of (agent, row)")
        if total_timesteps is not None and real_episodes is not None:
            raise UsageError("give total_timesteps or real_episodes, not both")
        if real_episodes is None and total_timesteps is None:
            real_episodes = self.config.real_episodes
        if min(real_episodes or 0, total_timesteps or 0) < 0:
            raise UsageError("counts of episodes and steps cannot be negative")
        if self._learning:
            raise UsageError("learn was called while it goes on: not from a callback")
        keeper = _Keeper(self, observer or Silent(), callbacks)
        with contextlib.ExitStack() as stack:
            self._learning = True
            stack.callback(setattr, self, "_learning", False)
            watching = keeper
            if progress_bar:
                from .progress import shown

                watching = stack.enter_context(
                    shown(self.task, self.state.counts, keeper, real_episodes, total_timesteps)
                )
            fleet = None
            if rigs is not None:
                fleet = rigs.fleet(self.task, self.state.counts.real_episodes)
                stack.callback(self._bring_home, fleet, keeper)
            self.state = training.train(
                self.task, self.state, watching, real_episodes, total_timesteps, fleet
            )
        return self

    def _bring_home(self, fleet: training.Fleet, observer: training.Observer) -> None:
        """Keep what rigs have collected when training comes to an early end."""
        late = fleet.close()
        if late:
            self.state = training.take_in(self.task, self.state, late, observer)
            observer.progress(self.state, "collect")

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
        batch, spaces = np.asarray(observation, np.float32), self.spaces
        size, box = spaces.observation.size, spaces.action
        if batch.shape[-1:] != (size,) or batch.ndim > 2:
            raise UsageError(
                f"an observation has shape ({size},) or (n, {size}), not {batch.shape}"
            )
        if lookahead not in (0, 1):
            raise UsageError(f"lookahead={lookahead}: 0 and 1 are supported")
        learner = self.state.sac
        rows = np.atleast_2d(batch)
        if lookahead:
            if not isinstance(self.model, DynamicsModel):
                raise UsageError(
                    "lookahead needs a model that is equations or learned; this agent has none: "
                    "give it one (--model FILE.py:Class)"
                )
            action = planning.lookahead_action(
                learner,
                self.model,
                jnp.asarray(rows),
                self.config.sac,
                self.config.planning,
                spaces,
                self.state.adaptation.trust,
            )
        elif deterministic:
            action = _mode(learner.averaged_actor, spaces.observation, box, rows)
        else:
            self._samples += 1
            draw = np.int32(self.seed), np.uint32(self._samples)
            action = _sample(learner.actor, spaces.observation, box, rows, *draw)
        # what rounding has put outside the box by an ulp
        action = np.clip(np.asarray(action), np.asarray(box.low), np.asarray(box.high))
        return action.reshape(*batch.shape[:-1], box.size), state

    def evaluate(
        self, episodes: int = 100, first_seed: int = evaluation.FIRST_SEED, lookahead: int = 0
    ) -> evaluation.Evaluation:
        """Run the deterministic policy; episode k starts from `reset(seed=first_seed + k)`.

        Environments of its own go on side by side, as many as can be made. Where none can, as of
        a device that is there only once, episodes are run one after another in the agent's own.
        `env_retries` and `step_seconds` hold here too.
        """
        spec = self.env.spec

        def policy(observations):
            return self.predict(observations, deterministic=True, lookahead=lookahead)[0]

        def make_env():
            if spec is None:
                raise UsageError("the environment was not made by gymnasium.make")
            env = gym.make(spec, disable_env_checker=True)
            return border.timed(env, self.config.step_seconds)

        return evaluation.evaluate(
            policy,
            make_env,
            episodes,
            self.spaces.episode_steps,
            first_seed,
            self.config.env_retries,
            spare=self.task.env,
        )

    def save(self, path: str | Path) -> None:
        """Write policy, critics, scales and model into the folder `path`.

        The safetensors files are all that `load` reads; the JSON beside each is what its head says,
        for people.
        """
        description = {
            "env_id": self.env_id,
            "sizes": _sizes(self.spaces),
            "seed": self.seed,
            "model": self.task.model.name if self.task.model else "none",
            "config": plain(self.config),
        }
        folder = Path(path)
        checkpoint.save_tree(folder / POLICY, self._policy_tree(), description)
        checkpoint.write_json(folder / "policy.json", description)
        if not isinstance(self.model, DynamicsModel):
            for name in (MODEL, "model.json"):  # of another agent that was saved here
                (folder / name).unlink(missing_ok=True)
        else:
            adaptation = self.state.adaptation
            tree, told = (adaptation.model, adaptation.trust), ladder.described(adaptation)
            checkpoint.save_tree(folder / MODEL, tree, told)
            checkpoint.write_json(folder / "model.json", told)

    @_OfTheClass
    def load(
        cls,
        path: str | Path,
        env: gym.Env | str,
        model: DynamicsModel | HostModel | str | None = None,
    ) -> "DynaSAC":
        """Read what `save` wrote. The caller says which environment and model; no file does.

        Arguments:
            model: as for the class, and as the saved agent was given it: what that learned of it
                is in the files. None for the known physics of the environment, if it was given
                that, or else for none, which its policy does not need.

        Raises:
            UsageError: the files are missing or damaged, or do not fit the environment.
        """
        folder = Path(path)
        with checkpoint.opened(folder / POLICY) as saved:
            description = saved.description
            config = presets.from_plain(description.get("config", {}))
            seed = description.get("seed")
            if not isinstance(seed, int):
                raise UsageError(f"{saved.path} has the seed {seed!r}, not a number")
            env = evaluation.make(env) if isinstance(env, str) else env
            ours = _sizes(spaces_of(env))
            theirs = description.get("sizes", ours)
            if theirs != ours:
                name = env.spec.id if env.spec else type(env.unwrapped).__name__
                raise UsageError(
                    f"{path} is of {description.get('env_id')!r}, whose observation and action "
                    f"have the sizes {theirs!r}, not of {name}, whose are {ours}: name its own "
                    "environment"
                )
            if model is None:
                model = _known(env, config, description.get("model"))
            saved.check_room(_least_weights(config.sac.hidden))
            agent = cls(env, model, config, seed)
            agent._restore(saved.tree(agent._policy_tree()))
        if (folder / MODEL).exists():
            agent._restore_model(folder / MODEL)
        return agent

    def _restore_model(self, path: Path) -> None:
        with checkpoint.opened(path) as saved:
            if self.task.model is None and saved.description.get("rung") != "ensemble":
                return  # the caller has not said which model it is that these numbers belong to
            if saved.description.get("rung") in ("residual", "ensemble"):
                ensemble = self.config.ensemble
                saved.check_room(ensemble.members * _least_weights(ensemble.hidden))
            # what it was adapted to is not there to go on from
            template = self._template(saved.description)._replace(after_transitions=0)
            model, trust = saved.tree((template.model, template.trust))
        self.state = self.state._replace(adaptation=template._replace(model=model, trust=trust))

    def _template(self, described: dict[str, Any]) -> Adaptation:
        return ladder.template(
            described, self.task.model, self.spaces, self.config.planning, self.config.ensemble
        )

    def save_checkpoint(self, folder: Path) -> None:
        """Write all that is needed to go on: learner, replay, model and counts."""
        description = {
            "env_id": self.env_id,
            "seed": self.seed,
            "config": plain(self.config),
            "adaptation": ladder.described(self.state.adaptation),
        }
        checkpoint.save_numbered(folder, self._training_tree(), description)

    def load_checkpoint(self, folder: Path) -> list[str]:
        """Go back to what `save_checkpoint` wrote last for an agent with the same settings.

        Returns a sentence for each checkpoint that had to be passed over because it is damaged; it
        is put aside.

        Raises:
            UsageError: there is none that is whole, or the settings differ.
        """
        damaged: list[checkpoint.Damaged] = []
        for path in checkpoint.numbered(folder):
            try:
                with checkpoint.opened(path) as saved:
                    self._go_back_to(saved)
            except checkpoint.Damaged as error:
                damaged.append(error)
                continue
            for passed in checkpoint.numbered(folder)[: len(damaged)]:
                with contextlib.suppress(OSError):  # where nothing can be written
                    passed.rename(f"{passed}.damaged")
            return [f"{error}; going on from {path.name}" for error in damaged]
        said = "; ".join(map(str, damaged)) or f"{folder} holds no checkpoint of this version"
        raise UsageError(f"there is nothing to go on from: {said}")

    def _go_back_to(self, saved: checkpoint.SavedTree) -> None:
        written = saved.description
        settings, described = (written.get(name, {}) for name in ("config", "adaptation"))
        if not (isinstance(settings, dict) and isinstance(described, dict)):
            raise checkpoint.Damaged(f"{saved.path} is damaged: it does not say what it holds")
        if written.get("env_id") != self.env_id:
            raise UsageError(f"{saved.path} is of {written.get('env_id')!r}, not of {self.env_id}")
        ours, theirs = (
            flat(json.loads(json.dumps(config))) for config in (plain(self.config), settings)
        )
        changed = [n for n in ours if ours[n] != theirs.get(n) and n not in presets.RENEWABLE]
        if changed or written.get("seed") != self.seed:
            raise UsageError(
                f"{saved.path} is of a run with other settings: {', '.join(changed) or 'seed'}"
            )
        before = self.state
        adaptation = self._template(described)
        self.state = before._replace(adaptation=adaptation)
        try:
            policy, earlier, replay, learned, simulated, counts, train_return, learning = (
                saved.tree(self._training_tree())
            )
            counts = training.Counts(*(int(count) for count in counts))
            rings = [replay, *([simulated.replay] if simulated else [])]
            if not training.possible(counts) or not all(ring.possible for ring in rings):
                raise checkpoint.Damaged(f"{saved.path} is damaged: its counts cannot be")
        except checkpoint.Damaged:
            self.state = before
            raise
        self._restore(policy)
        model, trust = learned
        self.state = self.state._replace(
            earlier=earlier,
            replay=replay,
            adaptation=adaptation._replace(model=model or adaptation.model, trust=trust),
            simulation=simulated,
            counts=counts,
            train_return=float(train_return[0]),
            learning=learning,
        )

    def close(self) -> None:
        """Close the environment, and the model if that holds one; the policy still acts."""
        border.close(self.task.env)
        if isinstance(self.task.model, HostModel):
            self.task.model.close()

    def _policy_tree(self):
        return self.state.sac, self.spaces.observation, self.spaces.action

    def _training_tree(self):
        state = self.state
        model = self.model if isinstance(self.model, DynamicsModel) else None
        return (
            self._policy_tree(),
            state.earlier,
            state.replay,
            (model, state.adaptation.trust),
            state.simulation,
            np.array(state.counts, np.int64),
            np.array([state.train_return]),
            state.learning,
        )

    def _restore(self, policy) -> None:
        learner, observation, action = policy
        ours = self.task.spaces.action
        if not eqx.tree_equal(ours, action):
            raise UsageError(
                f"what was saved has actions from {action.low.tolist()} to {action.high.tolist()}, "
                f"the environment from {ours.low.tolist()} to {ours.high.tolist()}: name the "
                "environment that it was trained in"
            )
        spaces = self.spaces._replace(observation=observation, action=action)
        self.task = self.task._replace(spaces=spaces)
        self.state = self.state._replace(sac=learner)


class _Keeper:
    """Hands each new state to the agent, so that an interrupted one keeps what it learned."""

    def __init__(self, agent: DynaSAC, observer: training.Observer, callbacks: list[Callback]):
        self._agent, self._observer, self._callbacks = agent, observer, callbacks

    def progress(self, state: TrainingState, phase: Phase) -> None:
        self._agent.state = state
        self._observer.progress(state, phase)

    def episode(self, state: TrainingState) -> bool | None:
        self._agent.state = state
        answers = [self._observer.episode(state)]
        answers += [
            _answer(callback, callback(self._agent, training.metrics(state)))
            for callback in self._callbacks
        ]
        return all(answer is None or bool(answer) for answer in answers)


def _answer(callback: Callback, answer: object) -> bool | None:
    """What a callback returned, if it means something.

    Raises:
        UsageError: it is neither None nor a bool.
    """
    if answer is None or isinstance(answer, bool | np.bool_):
        return None if answer is None else bool(answer)
    name = getattr(callback, "__name__", type(callback).__name__)
    said = " ".join(repr(answer).split())[:60]
    raise UsageError(
        f"the callback {name} returned {said}: return True to go on, False to stop, or nothing"
    )


def _least_weights(hidden: Sequence[int]) -> int:
    """How many weights a network has at least."""
    return sum(before * after for before, after in itertools.pairwise((1, *hidden, 1)))


def _sizes(spaces: Spaces) -> list[int]:
    """Of an observation and of an action, as JSON holds them."""
    return [spaces.observation.size, spaces.action.size]


def _known(env: gym.Env, config: Config, name: object) -> str:
    """The known physics of an environment if the model called `name` was that, or one to learn.

    Any other is somebody's own, or of no use for looking ahead.
    """
    if config.adapt == "ensemble":
        return "ensemble"
    physics = KNOWN_PHYSICS.get(env.spec.id if env.spec else "")
    return "auto" if physics and physics.__name__ == name else "none"


def resolved(
    asked: DynamicsModel | HostModel | str, env: gym.Env | None, spaces: Spaces
) -> DynamicsModel | HostModel | None:
    """The model that was asked for, checked, with its parameters as arrays.

    Raises:
        UsageError: it is not there, does not fit `spaces`, or needs an environment and has none.
    """
    if isinstance(asked, str) and asked in ("none", "ensemble"):
        return None
    if not isinstance(asked, str):
        model = asked
    elif asked in ("auto", "simulator"):
        if env is None:
            raise UsageError(
                f"the model {asked!r} needs an environment made by gymnasium.make; give the model "
                "itself, or FILE.py:Class"
            )
        model = known_model(env) if asked == "auto" else own_simulator(env)
    else:
        model = model_from_file(asked)
    if isinstance(model, HostModel):
        return model
    model = as_arrays(model)
    check_contract(model, spaces.observation.size, spaces.action.size)
    return model


# not equinox's jit, which takes several times as long to call as the network takes to act


@jax.jit
def _mode(actor: Actor, observations: Box, actions: Box, rows):
    return actions.from_unit(actor.mode(observations.to_unit(rows)))


@jax.jit
def _sample(actor: Actor, observations: Box, actions: Box, rows, seed, count):
    key = jax.random.fold_in(jax.random.key(seed), count)
    noise = jax.random.normal(key, (len(rows), actions.size))
    unit, _ = actor.sample(observations.to_unit(rows), noise)
    return actions.from_unit(unit)
