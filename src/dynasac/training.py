"""The loop of the seed document: collect, adapt, plan, evaluate, record; repeat."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from . import border, divergence, planning, replay, sac, simulation
from .adapt import ladder
from .adapt.ladder import Adaptation
from .collecting import COLLECT, Episode, Order, Part, random_key
from .errors import UsageError
from .models import DynamicsModel, HostModel
from .networks import Actor
from .presets import Config
from .replay import ReplayState
from .sac import Metrics, SACState
from .simulation import Simulation
from .spaces import Spaces
from .types import Transition


class Counts(NamedTuple):
    """How far training is; with the seed, all that its random numbers depend on."""

    real_episodes: int = 0
    real_steps: int = 0
    synthetic_transitions: int = 0
    gradient_updates: int = 0
    phase_updates: int = 0
    """updates already made of the phase of planning under way"""
    planned: int = 0
    """phases of planning that are complete"""
    logged_transitions: int = 0
    """real transitions that were logged elsewhere (`remember`), not counted as real steps"""
    planned_steps: int = 0
    """real steps that the last complete phase of planning knew"""
    planned_logged: int = 0
    """logged transitions that it knew"""
    diverged: int = 0
    """gradient updates after which the critics diverged and safer settings began; 0: they have
    not"""
    episode_steps: int = 0
    """real steps already collected of the real episode under way"""
    attempts: int = 0
    """at the real episode under way that the environment failed in"""
    failures: int = 0
    """of the environment while real episodes were collected, in all"""

    @property
    def real_transitions(self) -> int:
        """All evidence about the real system that there has been."""
        return self.real_steps + self.logged_transitions


def possible(counts: Counts) -> bool:
    """Whether counts can be true, as those from a file need not be."""
    parts = (
        (counts.episode_steps, counts.real_steps),
        (counts.planned_steps, counts.real_steps),
        (counts.planned_logged, counts.logged_transitions),
        (counts.phase_updates, counts.gradient_updates),
        (counts.diverged, counts.gradient_updates),
        (counts.attempts, counts.failures),
    )
    others = counts._replace(synthetic_transitions=0)  # which are no array's type
    return min(counts) >= 0 and max(others) < 2**31 and all(part <= whole for part, whole in parts)


class TrainingState(NamedTuple):
    """Everything that training changes: what a checkpoint holds."""

    sac: SACState
    earlier: SACState
    """the learner when the real episode or the phase of planning under way began"""
    replay: ReplayState
    adaptation: Adaptation
    """the model at hand"""
    learning: Metrics
    """how the last updates went, a chunk of planning's or those of a real step"""
    simulation: Simulation | None = None
    """where the model runs on the host: the episodes in it"""
    counts: Counts = Counts()
    train_return: float = 0.0
    """return of the last real episode, or of what there is of the one under way; 0 before the
    first"""


def at_once(program: Callable[..., Any], *arguments: Any) -> Any:
    """Just call it: who computes where there is one learner."""
    return program(*arguments)


class Task(NamedTuple):
    """Everything that training is given and never changes."""

    env: gym.Env
    spaces: Spaces
    model: DynamicsModel | HostModel | None
    """as it was given"""
    config: Config
    seed: int
    compute: Callable[..., Any] = at_once
    """calls what takes long while no real system waits; learners side by side share one"""


Phase = Literal["collect", "adapt", "plan"]


@runtime_checkable
class Observer(Protocol):
    """Who looks on: progress bars and run directories. Raising KeyboardInterrupt stops training."""

    def progress(self, state: TrainingState, phase: Phase) -> None:
        """Called when a phase begins and several times a second while it goes on."""
        ...

    def episode(self, state: TrainingState) -> bool | None:
        """Called after each phase of planning: before the first real episode, after each, and after
        logged transitions that came later; False stops training."""
        ...


@runtime_checkable
class Fleet(Protocol):
    """Environments elsewhere, rigs, that collect real episodes while training goes on."""

    begun: int
    """real episodes that have been begun in all; the number of the next"""

    @property
    def under_way(self) -> int:
        """Episodes that were begun and have not been handed over."""
        ...

    @property
    def free(self) -> int:
        """Rigs that can begin an episode now."""
        ...

    def begin(self, order: Order, actor: Actor) -> None:
        """Begin an episode on a rig that is free; the policy has NumPy arrays inside."""
        ...

    def arrived(self, seconds: float) -> list[list[Part]]:
        """Hand over episodes that have ended, as soon as there is one, after `seconds` at most.

        The parts of each that came home, in order: those of a rig that died do too.

        Raises:
            UsageError: there is no rig any more.
        """
        ...

    def close(self) -> list[list[Part]]:
        """Stop all rigs, and hand over what they had collected of episodes under way."""
        ...


ARRIVAL_SECONDS = 0.2
"""between two looks at the keyboard while rigs collect"""

CHUNK = 32 * planning.ROUND
"""updates in one call of the compiled program, between two looks at the clock and the keyboard"""

PLAN, STORE, SIMULATE = range(COLLECT + 1, COLLECT + 4)
"""what a stream of random numbers is for"""


def key_for(task: Task, purpose: int, count: int, attempt: int = 0) -> jax.Array:
    """The random key of the `count`-th use of a purpose (`collecting.random_key`)."""
    return random_key(task.seed, purpose, count, attempt)


def spaces_at(task: Task, adaptation: Adaptation) -> Spaces:
    """The task's spaces, with what a model learned from nothing has seen."""
    return ladder.seen(adaptation, task.spaces)


def initial(task: Task) -> TrainingState:
    """A learner that knows nothing, an empty replay, and the model as it was given."""
    sizes = (task.spaces.observation.size, task.spaces.action.size)
    planned = task.config.planning
    learner = sac.create(task.config.sac, task.spaces, task.seed)
    return TrainingState(
        sac=learner,
        earlier=learner,
        replay=replay.create(task.config.replay_capacity, *sizes),
        adaptation=ladder.at_hand(task.model, planned),
        learning=sac.no_metrics(),
        simulation=simulation.create(
            task.model, task.spaces, planned, task.config.replay_capacity, task.seed
        )
        if isinstance(task.model, HostModel)
        else None,
    )


def remember(task: Task, state: TrainingState, transitions: Transition) -> TrainingState:
    """Take logged transitions in as real experience; planning from them is due then.

    A real episode that is under way ends with them.

    Arguments:
        transitions: along one leading axis in the order of time, as `datasets` gives them.

    Raises:
        UsageError: the replay does not hold them beside what is in it.
    """
    rows, held = len(transitions.reward), int(state.replay.size)
    if held + rows > state.replay.capacity:
        to_come = task.config.real_episodes * task.spaces.episode_steps
        raise UsageError(
            f"{rows:,} logged transitions are more than the replay has room for: "
            f"--replay-capacity {held + rows + to_come} keeps all of them"
        )
    if state.counts.episode_steps:
        state = _complete(task, state)
    counts = state.counts
    return state._replace(
        replay=replay.add(state.replay, jax.device_put(transitions)),
        counts=counts._replace(logged_transitions=counts.logged_transitions + rows),
    )


def train(
    task: Task,
    state: TrainingState,
    observer: Observer,
    real_episodes: int | None = None,
    total_timesteps: int | None = None,
    fleet: Fleet | None = None,
) -> TrainingState:
    """Dyna: plan from what is known; then collect a real episode, adapt, plan again, and so on.

    Goes on from `state` until `real_episodes` episodes, or at least `total_timesteps` real steps,
    have been collected in all and planned from. When it is interrupted, the last state that
    `observer` saw is one to go on from, and leads to the same end.

    With a fleet, real episodes come from there, those that have arrived at a time.

    When the critics diverge, it goes back to the learner from before the phase of planning, or the
    real episode, and on with safer settings for good (`divergence.safer`).

    Raises:
        UsageError: the environment or the model returned something that is not a finite number, or
            the critics diverged again, or no rig of the fleet is left.
    """

    def wants_more(counts: Counts) -> bool:
        if real_episodes is not None:
            return counts.real_episodes < real_episodes
        return counts.real_steps - counts.episode_steps < (total_timesteps or 0)

    while _phase_is_due(state.counts) or wants_more(state.counts):
        if not _phase_is_due(state.counts) and fleet is not None:
            state = receive(task, state, observer, fleet, wants_more)
        elif not _phase_is_due(state.counts):
            collected = collect(_safer(task, state.counts), state, observer)
            state = _sound(task, state, collected, observer)
        state = adapt(task, state, observer)
        state = plan(task, state, observer)
        if observer.episode(state) is False:
            break
    return state


def _phase_is_due(counts: Counts) -> bool:
    """Whether the beginning, or what is known of reality since, is not planned from to the end."""
    if counts.episode_steps:
        return False
    known = counts.real_steps, counts.logged_transitions
    return not counts.planned or known != (counts.planned_steps, counts.planned_logged)


def collect(task: Task, state: TrainingState, observer: Observer) -> TrainingState:
    """One real episode into the replay, with model-free updates on the way.

    An episode that is under way in `state` is gone on with, if the environment gets to the same
    observations and rewards by the same actions. Where it does not, as real systems do not, the
    episode ends where it was.

    Where the environment fails, what was collected stays, and the episode is begun again as often
    as `env_retries` says; `observer` has seen it when the error is raised.

    Raises:
        UsageError: the environment failed, or returned what it must not.
    """
    observer.progress(state, "collect")
    kept, failed, every = state, 0, task.config.checkpoint_every_steps
    while True:
        try:
            for after in _episode(task, state):
                state, steps = after, after.counts.episode_steps
                # what is no number would be refused when it is read
                if every and steps % every == 0 and divergence.finite((state.sac, state.learning)):
                    kept = _copied(state)
                    observer.progress(kept, "collect")
                elif steps % 10 == 1:
                    observer.progress(kept, "collect")
            return _complete(task, state)
        except border.Failure as error:
            counts = state.counts
            counts = counts._replace(
                episode_steps=0, attempts=counts.attempts + 1, failures=counts.failures + 1
            )
            state = state._replace(counts=counts)
            if not divergence.finite((state.sac, state.learning)):
                state = state._replace(sac=state.earlier, learning=sac.no_metrics())
            kept = state
            observer.progress(kept, "collect")
            border.begin_again(error, failed, task.config.env_retries)
            failed += 1


def _episode(task: Task, state: TrainingState) -> Iterator[TrainingState]:
    """A real episode, or the rest of it: the state after each of its steps.

    The replay of a state that was yielded is given away when the next is asked for.

    Raises:
        border.Failure: the last state that was yielded holds all that was collected.
    """
    episode = Episode(task.env, _order(task, state, state.counts.real_episodes))
    if state.counts.episode_steps:
        rows = _rows_under_way(state)
        if not rows or not _same(episode.observation[None], rows[0].observation):
            return
        for row in rows:
            repeated = episode.repeat(np.asarray(row.action[0]))
            if not _same(repeated.row, row) or episode.over:
                return
    else:
        state = state._replace(train_return=0.0, earlier=state.sac)
    state = _copied(state)  # the replay's buffers are given away row by row below
    key = key_for(task, COLLECT, state.counts.real_episodes, state.counts.attempts)
    while not episode.over:
        unit = episode.act(state.sac.actor)
        if not np.isfinite(unit).all():
            break  # nothing real is moved by a learner that has diverged: `_sound` finds it
        step = episode.step(unit)
        state = _lived(task, state, step.row, key)
        state = state._replace(train_return=state.train_return + step.reward)
        yield state


def _order(task: Task, state: TrainingState, number: int) -> Order:
    """For the real episode of a number, with what is known so far."""
    config, counts = task.config, state.counts
    unknown = config.adapt == "ensemble" and state.adaptation.model is None
    return Order(
        seed=task.seed,
        number=number,
        attempt=counts.attempts,
        spaces=spaces_at(task, state.adaptation),
        random_steps=max(0, config.random_steps - counts.real_transitions + counts.episode_steps),
        # episodes that were over too soon to learn from call for weaker actions
        wandering=0.5**counts.real_episodes if unknown else None,
    )


def _lived(task: Task, state: TrainingState, row: Transition, key: jax.Array) -> TrainingState:
    """One more real transition, a batch of one, in the replay, and the updates that are due to it.

    The replay of `state` is given away.
    """
    config, counts = task.config, state.counts
    random = counts.real_transitions < config.random_steps
    learner, learning, memory = state.sac, state.learning, _remember(state.replay, row)
    counts = counts._replace(
        real_steps=counts.real_steps + 1, episode_steps=counts.episode_steps + 1
    )
    if config.updates_per_real_step and not random:
        last = counts.gradient_updates + config.updates_per_real_step
        spaces = spaces_at(task, state.adaptation)
        learner, learning, _ = planning.plan(
            learner,
            None,
            memory,
            spaces.observation,
            planning.full_trust(config.planning),
            _span(counts.gradient_updates, last, 0),
            config.sac,
            config.planning,
            spaces,
            key,
        )
        counts = counts._replace(gradient_updates=last)
    return state._replace(sac=learner, replay=memory, counts=counts, learning=learning)


def receive(
    task: Task,
    state: TrainingState,
    observer: Observer,
    fleet: Fleet,
    wants_more: Callable[[Counts], bool],
) -> TrainingState:
    """Real episodes from a fleet: those that have arrived, or else the next that does.

    First every rig that is free begins an episode under the policy at hand, but no more are begun
    than are wanted.

    Raises:
        UsageError: no rig is left, or the critics diverged again.
    """
    observer.progress(state, "collect")
    if state.counts.episode_steps:  # of one that was collected here, and is not gone on with there
        return _complete(task, state)
    while state.counts.real_steps == state.counts.planned_steps:
        while fleet.free and wants_more(_in_the_end(task, state.counts, fleet.under_way)):
            fleet.begin(_order(task, state, fleet.begun), jax.tree.map(np.asarray, state.sac.actor))
        state = take_in(task, state, fleet.arrived(ARRIVAL_SECONDS), observer)
        observer.progress(state, "collect")
    return state


def _in_the_end(task: Task, counts: Counts, under_way: int) -> Counts:
    """What is counted once so many episodes under way have arrived, if none is cut short."""
    steps = under_way * task.spaces.episode_steps
    return counts._replace(
        real_episodes=counts.real_episodes + under_way, real_steps=counts.real_steps + steps
    )


def take_in(
    task: Task, state: TrainingState, episodes: Sequence[Sequence[Part]], observer: Observer
) -> TrainingState:
    """Real episodes that were collected elsewhere, with the model-free updates due to them.

    These are made row by row, as if each had been collected now. An episode without a row does not
    count as one.

    Raises:
        UsageError: the critics diverged again.
    """
    if not episodes:
        return state
    if state.counts.phase_updates:  # planning under way begins anew, with the new rows
        counts = state.counts._replace(phase_updates=0)
        state = state._replace(sac=state.earlier, counts=counts)
    before, safer = state, _safer(task, state.counts)
    state = _copied(state)._replace(earlier=state.sac)
    for arrived in episodes:
        counts = state.counts
        key = key_for(task, COLLECT, counts.real_episodes)
        failures = sum(part.failure is not None for part in arrived)
        state = state._replace(counts=counts._replace(failures=counts.failures + failures))
        for part in arrived:
            for row in _one_by_one(part.rows):
                state = _lived(safer, state, row, key)
            state = state._replace(train_return=part.returned)
        if state.counts.episode_steps:
            state = _complete(safer, state)
    return _sound(task, before, state, observer)


def _complete(task: Task, state: TrainingState) -> TrainingState:
    """The real episode under way is over; what is imagined from there is stored, if asked for."""
    counts = state.counts
    counts = counts._replace(real_episodes=counts.real_episodes + 1, episode_steps=0, attempts=0)
    state, model = state._replace(counts=counts), state.adaptation.model
    if not task.config.planning.stored_transitions or not isinstance(model, DynamicsModel):
        return state
    memory, stored = planning.store_synthetic(
        state.sac,
        model,
        state.replay,
        task.config.planning,
        spaces_at(task, state.adaptation),
        state.adaptation.trust,
        key_for(task, STORE, counts.real_episodes),
    )
    synthetic = counts.synthetic_transitions + int(stored)
    return state._replace(replay=memory, counts=counts._replace(synthetic_transitions=synthetic))


def _copied(state: TrainingState) -> TrainingState:
    """With a replay of its own."""
    return state._replace(replay=jax.tree.map(jnp.copy, state.replay))


def _rows_under_way(state: TrainingState) -> list[Transition]:
    """The rows of the episode under way, one by one; none if the replay has lost some of them."""
    memory, steps = state.replay, state.counts.episode_steps
    if steps > memory.capacity:
        return []
    at = (int(memory.position) - steps + np.arange(steps)) % memory.capacity
    return _one_by_one(jax.tree.map(lambda ring: np.asarray(ring)[at], memory.transitions))


def _one_by_one(rows: Transition | None) -> list[Transition]:
    """Rows along one leading axis as batches of one; none of None."""
    if rows is None:
        return []
    return [jax.tree.map(lambda f, k=k: f[k : k + 1], rows) for k in range(len(rows.reward))]


def _same(ours, theirs) -> bool:
    """Whether two pytrees of arrays hold the same bits."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def adapt(task: Task, state: TrainingState, observer: Observer) -> TrainingState:
    """Try the model on all real transitions, if there are new ones, and make the best of it."""
    counts, before = state.counts, state.adaptation
    known = counts.real_transitions
    if before.after_transitions >= known:
        return state
    # of a phase of planning that is given up for one with more transitions
    unplanned = before.after_transitions > counts.planned_steps + counts.planned_logged
    if task.config.adapt == "none":
        same = before._replace(after_transitions=known, changed=False)
        return state._replace(adaptation=same)
    observer.progress(state, "adapt")
    after = task.compute(
        ladder.climb,
        task.model,
        task.config.adapt,
        replay.in_order(state.replay),
        known,
        before,
        task.spaces,
        task.config.planning,
        task.config.ensemble,
        task.seed,
    )
    changed = after.changed or (before.changed and unplanned)
    return state._replace(adaptation=after._replace(changed=changed))


def plan(task: Task, state: TrainingState, observer: Observer) -> TrainingState:
    """The updates of one phase of planning, in chunks, from wherever `state` is in the phase.

    In a model that has changed a new learner begins: one that has already been through such a phase
    learns worse in the next (Nikishin et al. 2022, "The primacy bias"). Otherwise the old one goes
    on, at the final learning rate. Whichever is better in the model is kept. Logged transitions get
    the updates that they would have got on the way, had they been collected. When the critics
    diverge the phase begins again, with safer settings.

    Raises:
        UsageError: the critics diverged again, or the model's numbers are not finite.
    """
    given, task = task, _safer(task, state.counts)
    config, adaptation, counts = task.config.planning, state.adaptation, state.counts
    begins = adaptation.changed or not counts.planned
    total = config.first_updates if begins else config.updates
    total += _updates_of_logged(task, counts)
    annealing = total if begins else 0
    observer.progress(state, "plan")
    if not state.counts.phase_updates:
        state = state._replace(earlier=state.sac)
        if adaptation.changed and state.counts.planned:
            seed = np.random.SeedSequence((task.seed, state.counts.planned)).generate_state(1)
            state = state._replace(sac=sac.create(task.config.sac, task.spaces, int(seed[0])))
    if task.config.adapt == "ensemble" and adaptation.model is None:
        total = 0  # nothing is known yet
    while state.counts.phase_updates < total:
        last = min(state.counts.phase_updates + CHUNK, total)
        further = plan_chunk(task, state, last, annealing)
        wrong = divergence.found(further.sac, further.learning, state.replay, task.config.sac)
        if wrong:
            counts = further.counts._replace(phase_updates=0)
            good = state._replace(sac=state.earlier, counts=counts)
            updates = further.counts.gradient_updates
            return plan(given, _again(task, good, updates, wrong, observer, "plan"), observer)
        state = further
        observer.progress(state, "plan")
    if total:
        state = _better_kept(task, state)
    counts = state.counts
    return state._replace(
        counts=counts._replace(
            phase_updates=0,
            planned=counts.planned + 1,
            planned_steps=counts.real_steps,
            planned_logged=counts.logged_transitions,
        )
    )


def plan_chunk(task: Task, state: TrainingState, last: int, annealing: int) -> TrainingState:
    """The updates of a phase of planning up to its `last`, in one call of the compiled program.

    Planning from a box around where the policy goes begins with looking where that is.

    Arguments:
        annealing: updates over which the learning rate falls; 0: it has its final value.
    """
    config, adaptation = task.config.planning, state.adaptation
    first, spaces = state.counts.phase_updates, spaces_at(task, adaptation)
    key = key_for(task, PLAN, state.counts.planned)
    source, state = _source(task, state, last - first)
    visited = spaces.observation
    if config.starts.visited and isinstance(source, DynamicsModel):
        visited = task.compute(planning.episodes, state.sac.actor, source, spaces, key).visited
    learner, learning, synthetic = task.compute(
        planning.plan,
        state.sac,
        source,
        state.replay,
        visited,
        adaptation.trust,
        _span(first, last, annealing),
        task.config.sac,
        config,
        spaces,
        key,
    )
    # a reward that is rare makes values that outlast the batches without it
    largest = jnp.maximum(learning.largest_reward, state.learning.largest_reward)
    learning = dataclasses.replace(learning, largest_reward=largest)
    counts = state.counts
    return state._replace(
        sac=learner,
        learning=learning,
        counts=counts._replace(
            phase_updates=last,
            gradient_updates=counts.gradient_updates + last - first,
            synthetic_transitions=counts.synthetic_transitions + int(synthetic),
        ),
    )


def _better_kept(task: Task, state: TrainingState) -> TrainingState:
    """The learner from before this phase of planning, if its policy is worth more in the model.

    One that had not learned anything is no rival. A model that was learned from nothing knows only
    what was seen: its word counts as far as it is right about the last real episode, so that a
    policy which got stuck is dropped and one that is about as good is not. There is no judge where
    the updates were on the replay alone, or the model runs on the host.
    """
    adaptation, model = state.adaptation, state.adaptation.model
    stored = task.config.planning.stored_transitions
    if not isinstance(model, DynamicsModel) or stored or not sac.updates(state.earlier):
        return state
    key, spaces = key_for(task, PLAN, state.counts.planned), spaces_at(task, adaptation)
    now, before = (
        float(
            task.compute(planning.episodes, learner.averaged_actor, model, spaces, key).mean_return
        )
        for learner in (state.sac, state.earlier)
    )
    doubt = abs(before - state.train_return) if adaptation.rung == "ensemble" else 0.0
    if now >= before - doubt:
        return state
    state = state._replace(sac=state.earlier)
    if not adaptation.changed:
        return state
    said = (
        f"the policy from before is kept: its return in the model is {before:.4g}, the new one's "
        f"{now:.4g}; more --planning.first-updates may help"
    )
    sentence = "; ".join(filter(None, [adaptation.sentence, said]))
    return state._replace(adaptation=adaptation._replace(sentence=sentence))


def _updates_of_logged(task: Task, counts: Counts) -> int:
    """Updates that logged transitions add to the phase of planning that is due."""
    return task.config.updates_per_real_step * (counts.logged_transitions - counts.planned_logged)


def _source(
    task: Task, state: TrainingState, updates: int
) -> tuple[DynamicsModel | ReplayState | None, TrainingState]:
    """Where the synthetic transitions of some updates come from.

    A model, or a replay that is filled from a simulator, whose episodes go on for it; None where
    the only ones are those in the real replay.
    """
    model = state.adaptation.model
    if task.config.planning.stored_transitions:
        return None, state
    if not isinstance(model, HostModel):
        return model, state
    assert state.simulation is not None  # `initial` makes one for every host model
    count = state.counts.gradient_updates
    further = task.compute(
        simulation.advance,
        model,
        state.sac,
        state.simulation,
        updates,
        task.config.planning,
        task.spaces,
        np.random.default_rng((task.seed, SIMULATE, count)),
        key_for(task, SIMULATE, count),
    )
    return further.replay, state._replace(simulation=further)


def updates_to_come(task: Task, counts: Counts, real_episodes: int) -> int:
    """How many gradient updates training will make at most, until `real_episodes` lie behind."""
    planned, config = task.config.planning, task.config
    episodes = max(0, real_episodes - counts.real_episodes)
    again = planned.updates if config.adapt == "none" else planned.first_updates
    steps = max(0, episodes * task.spaces.episode_steps - counts.episode_steps)
    due = 0
    if _phase_is_due(counts):
        due = again if counts.planned else planned.first_updates
        due = max(0, due + _updates_of_logged(task, counts) - counts.phase_updates)
    return due + episodes * again + steps * config.updates_per_real_step


def metrics(state: TrainingState) -> dict[str, Any]:
    """What training knows of a row of metrics.csv, by the names there (docs/metrics.md)."""
    counts, adaptation = state.counts, state.adaptation
    return {
        "real_episodes": counts.real_episodes,
        "real_steps": counts.real_steps,
        "logged_transitions": counts.logged_transitions,
        "failures": counts.failures,
        "synthetic_transitions": counts.synthetic_transitions,
        "gradient_updates": counts.gradient_updates,
        "train_return": state.train_return if counts.real_episodes else None,
        "model_error": adaptation.error,
        "adapt_rung": adaptation.rung,
        **{f"error_{rung}": error for rung, error in adaptation.errors.items()},
        "real_fraction": float(adaptation.trust.real_fraction),
        "rollout_steps": int(adaptation.trust.horizon),
        "decision": decision(state),
        **{f"parameter_{p.name}": p.after for p in adaptation.parameters},
        **(learning(state) if counts.gradient_updates else {}),
    }


def learning(state: TrainingState) -> dict[str, float]:
    """How the last updates went, by name."""
    values = vars(state.learning)
    return {name: float(values[name]) for name in values if name != "largest_reward"}


def decision(state: TrainingState) -> str:
    """What was decided about the model, and about a learner that diverged; empty if nothing was."""
    return "; ".join(filter(None, [state.adaptation.sentence, setback(state.counts)]))


def setback(counts: Counts) -> str:
    """What became of a learner that diverged, in words; empty if it has not."""
    if not counts.diverged:
        return ""
    return (
        f"the critics diverged after {counts.diverged:,} updates: training went back to before and "
        "goes on with safer settings, a tenth of the learning rate and Huber's loss"
    )


def _safer(task: Task, counts: Counts) -> Task:
    """The task with the settings to go on with."""
    if not counts.diverged:
        return task
    config = dataclasses.replace(task.config, sac=divergence.safer(task.config.sac))
    return task._replace(config=config)


def _sound(
    task: Task, before: TrainingState, collected: TrainingState, observer: Observer
) -> TrainingState:
    """The state after a real episode, with the learner from before it if that diverged in it."""
    config, wrong = task.config, None
    if config.planning.stored_transitions and not divergence.finite(collected.replay):
        collected = collected._replace(replay=before.replay)
        wrong = "numbers are not finite"
    if config.updates_per_real_step and not wrong:
        wrong = divergence.found(
            collected.sac,
            collected.learning,
            collected.replay,
            _safer(task, before.counts).config.sac,
        )
    if not wrong:
        return collected
    updates = collected.counts.gradient_updates
    good = collected._replace(sac=collected.earlier, learning=sac.no_metrics())
    return _again(task, good, updates, wrong, observer, "collect")


def _again(
    task: Task, good: TrainingState, updates: int, wrong: str, observer: Observer, phase: Phase
) -> TrainingState:
    """The last good state, to go on from with safer settings.

    Raises:
        UsageError: these were the safer ones already, or it is the model's fault.
    """
    model, spaces = good.adaptation.model, spaces_at(task, good.adaptation)
    fault = None
    if isinstance(model, DynamicsModel):
        fault = divergence.fault_of(
            model,
            good.sac,
            good.replay,
            spaces.observation,
            task.config.planning,
            spaces,
            good.adaptation.trust,
            key_for(task, PLAN, good.counts.planned),
        )
    if fault or good.counts.diverged:
        observer.progress(good, phase)
    if fault:
        raise UsageError(f"{fault}; found in planning, after {updates:,} gradient updates")
    if good.counts.diverged:
        raise UsageError(
            f"the critics diverged again after {updates:,} updates, with safer settings too "
            f"({wrong}): lower --sac.learning-rate or --sac.reward-scale, and look whether all "
            "rewards and observations are as large as they should be"
        )
    return good._replace(counts=good.counts._replace(diverged=updates))


_remember = jax.jit(replay.add, donate_argnums=0)


def _span(first: int, last: int, total: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Counts as arrays: as Python numbers they would be compiled in."""
    return jax.device_put((np.int32(first), np.int32(last), np.int32(total)))
