"""What training allocates, known before any of it is: plain arithmetic on settings and sizes.

Settings come from files too, and those may ask for anything: nothing here is as large as what it is
about.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from .errors import UsageError
from .models import DynamicsModel, HostModel
from .models.ensemble import LEAST_ROWS, EnsembleConfig, feature_count
from .models.residual import JUDGE, STARTS
from .models.simulator import host_reset
from .planning import ROUND
from .presets import Config
from .spaces import Spaces

NUMBER = 4
"""bytes of a float32 or an int32"""


class Sizes(NamedTuple):
    """What the environment and its model decide."""

    observation: int
    action: int
    episode_steps: int
    state: int | None = None
    """bytes of one state of a model that runs on the host; None for other models"""
    parameters: int | None = None
    """bytes of the arrays of a model that is compiled; None for other models"""


class Memory(NamedTuple):
    """Bytes by what they are for. The first five are exact, the others estimates of the most."""

    replay: int
    """real transitions"""
    simulation: int
    """synthetic transitions of a model that runs on the host, and the episodes in it"""
    learner: int
    """networks, their averages and Adam's moments; as they are, and as they were when planning
    began"""
    model: int
    """the model as it was given, and how far it is trusted"""
    learned_model: int
    """one at hand and one on trial; even with `--adapt none`, since a saved policy may bring one"""
    planning: int
    """batches, activations and gradients of the compiled updates"""
    fitting: int
    """what learning a model from the transitions of all real episodes takes"""
    copies: int
    """of the replay while episodes are collected and simulated, of all that a checkpoint holds
    while it is written, and of either on a second device that plans"""

    @property
    def total(self) -> int:
        return sum(self)


LOWER = {
    "replay": "--replay-capacity",
    "simulation": "--replay-capacity or --planning.simulations",
    "learner": "--sac.hidden",
    "model": "the size of the model's arrays",
    "learned_model": "--ensemble.hidden or --ensemble.members",
    "planning": "--sac.batch-size, --sac.hidden or --planning.improvement-candidates",
    "fitting": "--real-episodes, --replay-capacity or --ensemble.members",
}
"""what makes each part smaller"""


def sizes_of(spaces: Spaces, model: DynamicsModel | HostModel | None) -> Sizes:
    """The sizes of an environment and its model; one that runs on the host is reset once."""
    state = parameters = None
    if isinstance(model, HostModel):
        state = host_reset(model, 1, np.random.default_rng(0))[0].nbytes
    elif model is not None:
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    action, steps = spaces.action.size, spaces.episode_steps
    return Sizes(spaces.observation.size, action, steps, state, parameters)


def needed(config: Config, sizes: Sizes) -> Memory:
    """The memory of a training, the program itself apart."""
    replay = _replay(config.replay_capacity, sizes)
    simulated = 0
    if sizes.state is not None:
        each = sizes.state + NUMBER * sizes.observation + 8  # and its age
        simulated = replay + config.planning.simulations * each
    learner = 2 * _learner(config, sizes) + 6 * NUMBER  # and how the last updates went
    return Memory(
        replay=replay,
        simulation=simulated,
        learner=learner,
        model=(sizes.parameters or 0) + 4 * NUMBER,  # and how far it is trusted
        learned_model=2 * _learned_model(config.ensemble, sizes),
        planning=_planning(config, sizes),
        fitting=_fitting(config, sizes) if _learns(config, sizes) else 0,
        copies=2 * (replay + simulated) + learner,
    )


def check(memory: Memory, available: int) -> None:
    """Refuse what does not fit.

    Arguments:
        available: bytes.

    Raises:
        UsageError: training needs more; it says for what, and which setting to lower.
    """
    if memory.total <= available:
        return
    parts = memory._replace(copies=0)._asdict()  # which are less where the others are
    name, largest = max(parts.items(), key=lambda part: part[1])
    raise UsageError(
        f"training would need {_told(memory.total)} of memory, {_told(largest)} of it for "
        f"{name.replace('_', ' ')}, and there are {_told(available)}: lower {LOWER[name]}"
    )


def check_together(memories: Sequence[Memory], available: int) -> None:
    """Refuse learners side by side that do not all fit.

    Arguments:
        available: bytes.

    Raises:
        UsageError: they need more; it says how many of them fit.
    """
    totals = list(itertools.accumulate(memory.total for memory in memories))
    fit = sum(total <= available for total in totals)
    if fit < len(totals):
        raise UsageError(
            f"{len(totals)} learners side by side would need {_told(totals[-1])} of memory, and "
            f"there are {_told(available)}: {fit} fit"
        )


CGROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""where Linux says what a container may use, in its present form and in the one before"""


def available(limits: tuple[Path, ...] = CGROUPS) -> int:
    """Bytes that this process may use at most: the machine's, or its container's if those are less.

    Others may use part of them.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such limit, or the word "max"
            continue
    return min(found)


def _replay(capacity: int, sizes: Sizes) -> int:
    """Of transitions, with the two counts of a ring."""
    return capacity * _row(sizes) + 2 * NUMBER


def _row(sizes: Sizes) -> int:
    """Of one transition: two observations, an action, a reward and whether it terminated."""
    return NUMBER * (2 * sizes.observation + sizes.action + 1) + 1


def _parameters(*layers: int) -> int:
    """Weights and biases between layers of so many units."""
    return sum(outputs * (inputs + 1) for inputs, outputs in itertools.pairwise(layers))


def _networks(config: Config, sizes: Sizes) -> tuple[int, int]:
    """Parameters of the actor and of the two critics."""
    observation, action, hidden = sizes.observation, sizes.action, config.sac.hidden
    critic = _parameters(observation + action, *hidden, 1)
    return _parameters(observation, *hidden, 2 * action), 2 * critic


def _learner(config: Config, sizes: Sizes) -> int:
    """Each network, its average and its two moments; the temperature and its; Adam's counts."""
    actor, critics = _networks(config, sizes)
    return NUMBER * (4 * actor + 4 * critics + 3 + 4)


def _ensemble(inputs: int, targets: int, config: EnsembleConfig) -> int:
    """Networks, their linear parts, and the means and deviations of what goes in and comes out."""
    size = feature_count(inputs)
    network = _parameters(size, *config.hidden, 2 * targets) + targets * size
    return NUMBER * (config.members * network + 2 * inputs + 2 * targets)


def _learned_model(config: EnsembleConfig, sizes: Sizes) -> int:
    """`residual.LearnedModel`, but for the model that it corrects."""
    observation, action = sizes.observation, sizes.action
    inputs, targets = _ends(sizes)
    judge = EnsembleConfig(members=config.members, hidden=JUDGE.hidden)
    scalars_and_payments = 5
    others = (
        2 * targets + inputs**2 + (STARTS + 2) * observation + 2 * action + scalars_and_payments
    )
    return _ensemble(inputs, targets, config) + _ensemble(observation, 1, judge) + NUMBER * others


def _learns(config: Config, sizes: Sizes) -> bool:
    """Whether planning may be in a model that was learned."""
    return config.adapt in ("auto", "residual", "ensemble") and sizes.state is None


def _planning(config: Config, sizes: Sizes) -> int:
    """What is alive at once of `planning.plan`, as its compiled programs were found to use it.

    Its batches; beside them either the rows that go through the model, with one layer of the actor
    or three of actor and critics, or two of each member; or an update: each network's activations
    and their gradients, and twice its parameters for gradients and directions.
    """
    batch, hidden, planned = config.sac.batch_size, config.sac.hidden, config.planning
    in_model = sizes.parameters is not None or _learns(config, sizes)
    batches = ROUND if in_model or sizes.state is not None else 1
    rows = max(batches * batch, planned.stored_transitions)
    through_model = 0
    if in_model and not planned.stored_transitions:
        improved = batches * min(batch, planned.improvement_states)
        tried = improved * (planned.improvement_candidates + 1)
        through_model = max(rows * max(hidden), tried * 3 * max(hidden))
        if _learns(config, sizes):
            layer = max(*config.ensemble.hidden, 2 * _ends(sizes)[1])
            members = 2 * config.ensemble.members * layer
            through_model = max(through_model, max(rows, tried) * members)
    update = 2 * (3 * batch * sum(hidden) + sum(_networks(config, sizes)))
    return 3 * rows * _row(sizes) + NUMBER * max(through_model, update)


def _fitting(config: Config, sizes: Sizes) -> int:
    """The larger of the regression, each member's rows for each target, and an update's batch."""
    learned, (inputs, targets) = config.ensemble, _ends(sizes)
    episodes = max(1, config.real_episodes)
    real = min(config.replay_capacity, episodes * sizes.episode_steps)
    rows = max(LEAST_ROWS, 1 << (real - 1).bit_length())
    features = feature_count(inputs) + 1
    regression = learned.members * targets * rows * features
    activations = 2 * learned.batch_size * (features + sum(learned.hidden))
    says = 2 * rows * max(learned.hidden)
    update = learned.members * activations + 4 * _ensemble(inputs, targets, learned) // NUMBER
    return NUMBER * max(regression + regression // 4, update, learned.members * says)


def _ends(sizes: Sizes) -> tuple[int, int]:
    """Inputs and targets of a learned model."""
    return sizes.observation + sizes.action, sizes.observation + 1


MOST_TOLD = 10**21


def _told(size: int) -> str:
    """In GB; Python does not print, nor make floats of, what a file may ask for."""
    return f"{size / 1e9:.3g} GB" if size < MOST_TOLD else "over 1e12 GB"
