"""Models learned from real transitions: what physics leaves open, or all of it.

`fit` puts a learned correction on a base model. The correction of each component counts as far as
it holds for rows that the networks had not seen, and fades where the networks disagree: there the
base rules. Without physics the base is `Still`, of which everything must be learned.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import UsageError
from ..spaces import Box, Spaces
from ..types import Transition, follows, padded
from . import ensemble
from .base import DynamicsModel, ModelStep
from .ensemble import Ensemble, EnsembleConfig, float32

STARTS = 64
"""episode starts that a model remembers"""
MARGIN = 0.25
"""how far predictions may leave what was seen, as a part of its range"""
TOLERANCE = 0.05
"""disagreement that does no harm, as a part of a step's movement or of the spread of rewards"""
MADE_UP = 256
MADE_UP_SHARE = 0.1
"""states from anywhere that a judge of ends that pay takes for not terminal, and their part of a
batch"""
EVIDENCE = 2.0
"""standard errors by which a correction must be right"""
NARROWEST = 0.03
"""standard deviations of the inputs; less is taken for this much in judging what is far"""
REACH = 3.0
"""how many times as far as anything seen a correction is believed"""
CURIOUS_UP_TO = 2.0
"""the uncertainty beyond which there is no more reward for it"""
JUDGE = EnsembleConfig(hidden=(16,), updates=1000)
"""of the classifier of terminal states; with as many members as the other networks"""


class Still(DynamicsModel):
    """The model of those who know no physics: nothing moves, pays or ends."""

    size: int = eqx.field(static=True)

    def initial_observation(self, key: PRNGKeyArray) -> Array:
        del key
        return jnp.zeros(self.size)

    def step(self, observation: Array, action: Array, key: PRNGKeyArray) -> ModelStep:
        del action, key
        return ModelStep(observation, jnp.zeros(()), jnp.zeros((), bool))

    def project(self, observation: Array) -> Array:
        return observation


class LearnedModel(DynamicsModel):
    """A base model and what an ensemble of networks adds to it.

    Structure and shapes depend on the sizes and settings alone: models fitted to more and more data
    run in the same compiled programs.
    """

    base: DynamicsModel
    correction: Ensemble
    """from (observation, action in [-1, 1]) to (change of the next observation, of the reward)"""
    shrinkage: Float[Array, " targets"]
    """how much of each component is believed, 0 to 1"""
    familiar: Float[Array, "inputs inputs"]
    """makes scaled inputs, mean 0, into vectors of length 1 at the border of what was seen"""
    disagreement: Float[Array, " targets"]
    """the members' standard deviation that makes an uncertainty of 1, in the targets' units"""
    judge: Ensemble
    """from the next observation to the log odds that it is terminal"""
    judges: Float[Array, ""]
    """1 where the judge decides what is terminal, 0 where the base does"""
    jump: Float[Array, ""]
    """what termination adds to the reward"""
    payments: Box
    """of one component: what may be added to the base's reward, but for the jump"""
    observations: Box
    """what next observations are possible"""
    starts: Float[Array, "starts observation"]
    """where episodes began"""
    actions: Box
    """the environment's"""
    bonus: Float[Array, ""]
    """reward for each unit of uncertainty, up to `CURIOUS_UP_TO`; 0 unless exploring"""

    def initial_observation(self, key: PRNGKeyArray) -> Array:
        """A start of the base, or one that was seen; those beside them are as likely."""
        if not isinstance(self.base, Still):
            return self.base.initial_observation(key)
        row_key, weight_key = jax.random.split(key)
        first, second = jax.random.randint(row_key, (2,), 0, len(self.starts))
        weight = jax.random.uniform(weight_key)
        return self.project(
            self.starts[first] + weight * (self.starts[second] - self.starts[first])
        )

    def step(self, observation: Array, action: Array, key: PRNGKeyArray) -> ModelStep:
        base = self.base.step(observation, action, key)
        inputs = jnp.concatenate([observation, self.actions.to_unit(action)])
        means, _ = self.correction(inputs)
        mean, apart = means.mean(axis=0), means.std(axis=0)
        believed = self.shrinkage * mean
        if not isinstance(self.base, Still):
            # as far as it is more than what the members disagree about (Wiener's filter), and less
            # where nobody has been: members that saw the same few places agree on all others
            length = jnp.linalg.norm(self.familiar @ self.correction.inputs.to_unit(inputs))
            share = mean**2 / (mean**2 + apart**2 + 1e-30)
            share /= 1 + jnp.maximum(length / REACH - 1, 0.0) ** 2
            believed, apart = share * believed, share * apart
        uncertainty = (apart / self.disagreement).max()
        reached = base.next_observation + believed[:-1]
        following = jnp.clip(reached, self.observations.low, self.observations.high)
        beyond = (following != reached).any()
        following = self.project(following)
        odds = jax.nn.sigmoid(self.judge(following)[0][:, 0])
        terminated = jnp.where(self.judges > 0, odds.mean() > 0.5, base.terminated)
        if isinstance(self.base, Still):
            # where ends cost, a policy must not lean on the border of what was seen, as on a wall
            # (Kidambi et al. 2020, "MOReL")
            terminated |= beyond & (self.jump < 0)
        reward = base.reward + jnp.clip(believed[-1], self.payments.low[0], self.payments.high[0])
        curiosity = self.bonus * jnp.minimum(uncertainty, CURIOUS_UP_TO)
        return ModelStep(
            next_observation=following,
            reward=reward + jnp.where(terminated, self.jump, 0.0) + curiosity,
            terminated=terminated,
            uncertainty=uncertainty,
        )

    def project(self, observation: Array) -> Array:
        return self.base.project(
            jnp.clip(observation, self.observations.low, self.observations.high)
        )


class OutOfBag(NamedTuple):
    """What was predicted for each real transition by networks that had not seen it."""

    next_observation: np.ndarray
    """[rows, observation], in the environment's units"""
    reward: np.ndarray
    """[rows], in the environment's unit"""
    terminated: np.ndarray
    """[rows], bool"""
    uncertainty: np.ndarray
    """[rows], of the model as it is, which did see them"""


def create(
    base: DynamicsModel | None, spaces: Spaces, config: EnsembleConfig, seed: int = 0
) -> LearnedModel:
    """An untrained model: the base as it is. A template for those that `fit` makes."""
    size = spaces.observation.size
    inputs = size + spaces.action.size
    return LearnedModel(
        base=Still(size) if base is None else base,
        correction=ensemble.create(inputs, size + 1, config, seed),
        shrinkage=jnp.zeros(size + 1),
        familiar=jnp.eye(inputs),
        disagreement=jnp.ones(size + 1),
        judge=ensemble.create(size, 1, _judge_config(config), seed),
        judges=jnp.zeros(()),
        jump=jnp.zeros(()),
        payments=Box(float32([-np.inf]), float32([np.inf])),
        observations=Box(
            float32(np.where(spaces.bounded, spaces.observation.low, -np.inf)),
            float32(np.where(spaces.bounded, spaces.observation.high, np.inf)),
        ),
        starts=jnp.zeros((STARTS, size)),
        actions=spaces.action,
        bonus=jnp.zeros(()),
    )


def fit(
    base: DynamicsModel | None,
    transitions: Transition,
    spaces: Spaces,
    config: EnsembleConfig,
    seed: int,
) -> tuple[LearnedModel, OutOfBag]:
    """Learn from real transitions what the base gets wrong.

    Arguments:
        base: physics that is about right; None where none is known.
        transitions: in the order of time, along one leading axis; actions in [-1, 1].

    Raises:
        UsageError: there are too few transitions, or some are not finite.
    """
    rows: Any = jax.tree.map(np.asarray, transitions)  # a Transition of NumPy's arrays
    count = len(rows.reward)
    if count < 2 * config.members:
        raise UsageError(
            f"{count} transitions are too few to learn a model from: collect at least "
            f"{2 * config.members}"
        )
    for name in ("observation", "action", "reward", "next_observation"):
        if not np.isfinite(getattr(rows, name)).all():
            raise UsageError(f"the transitions' {name} has numbers that are not finite")
    template = create(base, spaces, config, seed)
    rounded = jax.tree.map(lambda a: padded(a, ensemble.LEAST_ROWS), rows)
    predicted = jax.tree.map(lambda a: np.asarray(a)[:count], _base_steps(template, rounded))
    ended = rows.terminated

    # the correction; what a terminal state pays beyond it is a matter of its own
    inputs = np.concatenate([rows.observation, rows.action], axis=1)
    targets = np.concatenate(
        [
            rows.next_observation - predicted.next_observation,
            (rows.reward - predicted.reward)[:, None],
        ],
        axis=1,
    )
    counted = np.ones(targets.shape, bool)
    counted[:, -1] = ~ended | ended.all()
    movement = rows.next_observation - rows.observation
    box = spaces.observation
    low = np.where(spaces.bounded, box.low, -np.inf)
    high = np.where(spaces.bounded, box.high, np.inf)
    stopped = np.zeros(targets.shape)
    stopped[:, :-1] = 1.0 * (rows.next_observation >= high) - (rows.next_observation <= low)
    matters = np.append(_spread(movement), _spread(rows.reward[counted[:, -1]]))
    rng = np.random.default_rng(seed)
    bags = ensemble.bootstrap(count, config.members, rng)
    correction, said = ensemble.fit(
        inputs, targets, counted, stopped, 1e-4 * matters, config, seed, bags=bags
    )
    outside = bags == 0
    honest = _mean_where(said, outside)
    shrinkage = _shrinkage(
        targets, honest, counted & (stopped == 0), np.asarray(correction.targets.std)
    )
    if base is None:
        shrinkage = np.ones_like(shrinkage)  # that nothing moves is no belief to hold on to
    held = np.sort(np.where(outside[..., None], said, np.inf), axis=0)[: ensemble.HELD_OUT]
    apart = np.quantile(np.abs(held[1] - held[0]) / np.sqrt(2), 0.95, axis=0)
    smooth = shrinkage * honest

    seen = _range(np.concatenate([rows.observation, rows.next_observation]), 1e-6)
    bounded = np.asarray(spaces.bounded)
    observations = Box(
        *(float32(np.where(bounded, a, b)) for a, b in zip((box.low, box.high), seen, strict=True))
    )
    # physics may go where nobody has been
    possible = observations if base is None else Box(float32(low), float32(high))

    # terminal states
    judge, judges, says = _judged(template, rows, predicted.terminated, observations, config, seed)
    terminated = says if judges else predicted.terminated
    rest = rows.reward - predicted.reward - smooth[:, -1]
    jump = rest[ended & terminated].mean() if (ended & terminated).any() else 0.0

    payments = _range(targets[counted[:, -1], -1:], 1e-6)
    scale = correction.inputs
    disagreement = np.maximum(apart, TOLERANCE * matters)
    model = dataclasses.replace(
        template,
        correction=correction,
        shrinkage=float32(shrinkage),
        familiar=float32(_familiar((inputs - np.asarray(scale.mean)) / np.asarray(scale.std))),
        disagreement=float32(disagreement),
        judge=judge,
        judges=float32(judges),
        jump=float32(jump),
        payments=Box(*map(float32, payments)),
        observations=possible,
        starts=float32(_episode_starts(rows)),
        bonus=float32(_curiosity(rows, jump) if base is None else 0.0),
    )
    return model, OutOfBag(
        next_observation=_projected(model, predicted.next_observation + smooth[:, :-1]),
        reward=predicted.reward + smooth[:, -1] + np.where(terminated, jump, 0.0),
        terminated=terminated,
        uncertainty=(said.std(axis=0) / disagreement).max(axis=1),
    )


@eqx.filter_jit
def _base_steps(model: LearnedModel, rows: Transition) -> ModelStep:
    keys = jax.random.split(jax.random.key(0), len(rows.reward))
    actions = model.actions.from_unit(rows.action)
    return jax.vmap(model.base.step)(rows.observation, actions, keys)


def _projected(model: LearnedModel, observations: np.ndarray) -> np.ndarray:
    count = len(observations)
    rounded = float32(padded(observations, ensemble.LEAST_ROWS))
    return np.asarray(_project_all(model, rounded))[:count]


@eqx.filter_jit
def _project_all(model: LearnedModel, observations: Array) -> Array:
    return jax.vmap(model.project)(observations)


def _judged(
    template: LearnedModel,
    rows: Transition,
    predicted: np.ndarray,
    observations: Box,
    config: EnsembleConfig,
    seed: int,
) -> tuple[Ensemble, float, np.ndarray]:
    """The classifier of terminal states, whether it is to decide, and what it says out of bag.

    It does where the base is wrong about more rows than there were terminations.
    """
    ended = rows.terminated
    wrong = (ended != predicted).sum()
    if not ended.any() or wrong < max(1, 0.5 * ended.sum()):
        return template.judge, 0.0, predicted
    count = len(ended)
    rng = np.random.default_rng((seed, 3))
    # where ends pay, beside the rows, states from anywhere that are taken for not terminal: what
    # nobody has seen must not attract a policy by an end that a few terminal rows made up
    pays = ended.all() or rows.reward[ended].mean() > rows.reward[~ended].mean()
    invented = MADE_UP_SHARE if pays else 0.0
    low, high = (np.asarray(bound) for bound in (observations.low, observations.high))
    made_up = rng.uniform(low, high, (MADE_UP, len(low)))
    inputs = np.concatenate([rows.next_observation, made_up])
    # as many terminal rows are drawn as others
    drawn = np.concatenate(
        [
            np.where(ended, 0.5 / ended.sum(), (0.5 - invented) / max(1, (~ended).sum())),
            np.full(MADE_UP, invented / MADE_UP),
        ]
    )
    labels = np.pad(ended, (0, MADE_UP)).astype(float)[:, None]

    def learned(bags: np.ndarray):
        return ensemble.fit(
            inputs,
            labels,
            np.ones(labels.shape, bool),
            np.zeros(labels.shape),
            np.ones(1),
            _judge_config(config),
            seed,
            loss="logistic",
            rows=drawn,
            bags=np.pad(bags, [(0, 0), (0, MADE_UP)], constant_values=1.0),
        )

    # the border lies between a few rows: the judge sees all of them; what it is worth, others say
    bags = ensemble.bootstrap(count, config.members, rng)
    judge, _ = learned(np.ones(bags.shape))
    few = ended & (ended.sum() < 2 * config.members)
    _, said = learned(np.where(few, 1.0, bags))
    honest = _mean_where(1 / (1 + np.exp(-said[:, :count])), bags == 0)
    return judge, 1.0, honest[:, 0] > 0.5


def _judge_config(config: EnsembleConfig) -> EnsembleConfig:
    return dataclasses.replace(JUDGE, members=config.members)


def _shrinkage(
    targets: np.ndarray, honest: np.ndarray, counted: np.ndarray, usual: np.ndarray
) -> np.ndarray:
    """The factors of the held-out predictions that fit best, less what may be chance, 0 to 1."""
    miss = (targets - honest) / (ensemble.OUTLYING * usual)
    weight = counted * np.maximum(0.0, 1 - miss**2) ** 2
    power = np.maximum((weight * honest**2).sum(0), 1e-30)
    best = (weight * honest * targets).sum(0) / power
    rest = weight * honest * (targets - best * honest)
    blocks = np.add.reduceat(rest, np.arange(0, len(rest), ensemble.BLOCK))
    error = np.sqrt((blocks**2).sum(0)) / power
    return np.clip(best - EVIDENCE * error, 0.0, 1.0)


def _familiar(x: np.ndarray) -> np.ndarray:
    """The matrix that makes rows, of mean 0, alike in all directions and the longest of length 1.

    By Mahalanobis's distance: along directions in which the rows hardly differ, as where feedback
    ties the actions to the observations, little is far.
    """
    square = x.T @ x / len(x) + NARROWEST**2 * np.eye(x.shape[1])
    values, vectors = np.linalg.eigh(square.astype(np.float64))
    whiten = vectors.T / np.sqrt(values)[:, None]
    return whiten / max(np.linalg.norm(x @ whiten.T, axis=1).max(), 1.0)


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Over the members that are meant, [members, rows, targets] to [rows, targets]."""
    weights = where[..., None]
    return (weights * values).sum(0) / weights.sum(0)


def _curiosity(rows: Any, jump: float) -> float:
    """The reward for uncertainty: what actions cost, while nothing but an end is known to aim for.

    That is while rewards follow from the actions alone, so that no state has been seen to be better
    than another, and no end was seen that costs: that of balancing is to be kept away from.
    """
    going = ~rows.terminated
    if not going.any() or (rows.terminated.any() and jump <= 0):
        return 0.0
    action, reward = rows.action[going], rows.reward[going]
    terms = np.concatenate([np.ones_like(action[:, :1]), action, action**2], axis=1)
    rest = reward - terms @ np.linalg.lstsq(terms, reward, rcond=None)[0]
    if (rest**2).mean() > 0.01 * reward.var() + 1e-12:
        return 0.0
    return float(reward.std()) or 1.0


def _episode_starts(rows: Any) -> np.ndarray:
    """The last observations with which episodes began, repeated to `STARTS` rows."""
    starts = rows.observation[~follows(rows)][-STARTS:]
    return starts[np.arange(STARTS) % len(starts)]


def _spread(values: np.ndarray) -> np.ndarray:
    """What is usual; 1 for what never changes."""
    usual = ensemble.spread(values)
    return np.where(usual > 0, usual, 1.0)


def _range(values: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The range of values, with a margin on either side."""
    low, high = values.min(axis=0), values.max(axis=0)
    margin = MARGIN * np.maximum(high - low, least)
    return np.asarray(low - margin), np.asarray(high + margin)
