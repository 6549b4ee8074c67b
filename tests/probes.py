"""Environments and models so small that what must come out can be worked out by hand.

The environments are registered on import, so `probes:Recall-v0` names one on the command line.
"""

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from dynasac import DynamicsModel, ModelStep, PhysicsModel
from dynasac.spaces import Box, Spaces


class Countdown(PhysicsModel):
    """State: steps left. Each step takes one off and pays 1; at 0 the episode is over."""

    length: float = 3.0

    def initial(self, key):
        del key
        return jnp.array([self.length], jnp.float32)

    def transition(self, state, action):
        del action
        return state - 1

    def reward(self, state, action, next_state):
        del state, action, next_state
        return jnp.ones(())

    def terminal(self, state):
        return state[0] < 0.5


class Slide(PhysicsModel):
    """State: position. The action moves it; past 1 on either side the episode is over."""

    speed: float = 0.5

    def initial(self, key):
        return jax.random.uniform(key, (1,), minval=0.4, maxval=0.5)

    def transition(self, state, action):
        return state + self.speed * action

    def reward(self, state, action, next_state):
        del state
        return -(next_state[0] ** 2) - 0.1 * action[0] ** 2

    def terminal(self, state):
        return jnp.abs(state[0]) > 1.0


class Drift(PhysicsModel):
    """Position and velocity on an endless plane of two axes: nothing bounds the observation."""

    def initial(self, key):
        return jax.random.uniform(key, (4,), minval=-1.0)

    def transition(self, state, action):
        velocity = state[2:] + 0.1 * action
        return jnp.concatenate([state[:2] + 0.1 * velocity, velocity])

    def reward(self, state, action, next_state):
        del state, action
        return -(next_state @ next_state)


class Raw(DynamicsModel):
    """The bare contract, not a PhysicsModel: the unit circle, moved by noise."""

    scale: float = 0.1

    def initial_observation(self, key):
        del key
        return jnp.array([1.0, 0.0])

    def step(self, observation, action, key):
        moved = observation + self.scale * (action + jax.random.normal(key, (2,)))
        return ModelStep(self.project(moved), jnp.sum(action), jnp.zeros((), bool))

    def project(self, observation):
        return observation / jnp.sqrt(observation @ observation)


class Probe(gym.Env):
    """One observed number in [-1, 1] and one action in [-2, 2]."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observed(), {}

    def observed(self):
        return np.array([self.time / 10], np.float32)


class Clock(Probe):
    """Observes a tenth of the step count; the reward is the action. Ends as the arguments say."""

    def __init__(self, terminates_at: int | None = None):
        self.terminates_at = terminates_at
        self.actions: list[float] = []

    def step(self, action):
        assert action.shape == (1,)
        assert action in self.action_space
        self.actions.append(float(action[0]))
        self.time += 1
        return self.observed(), float(action[0]), self.time == self.terminates_at, False, {}


class Recall(Probe):
    """Shows a random number x and pays -(action + 1.5 x)², ten times an episode."""

    def observed(self):
        self.shown = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.shown

    def step(self, action):
        reward = -float((action[0] + 1.5 * self.shown[0]) ** 2)
        return self.observed(), reward, False, False, {}


class Rail(Probe):
    """What `Slide` describes, with the action in [-2, 2]."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(0.4, 0.5, 1).astype(np.float32)
        return self.position, {}

    def step(self, action):
        self.position = self.position + np.float32(0.5) * np.float32(action)
        reward = -float(self.position[0] ** 2 + 0.1 * action[0] ** 2)
        return self.position, reward, bool(abs(self.position[0]) > 1), False, {}


class Broken(Probe):
    """Returns `value` as observation or reward at the third step."""

    def __init__(self, where: str = "observation", value: float = float("nan")):
        self.where, self.value = where, value

    def step(self, action):
        del action
        self.time += 1
        bad = self.time == 3
        observation = self.observed()
        if bad and self.where == "observation":
            observation = np.array([self.value], np.float32)
        return observation, self.value if bad and self.where == "reward" else 0.0, False, False, {}


class Shaped(gym.Env):
    """Any spaces; it cannot be run."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space):
        self.observation_space, self.action_space = observation_space, action_space


class Plane(gym.Env):
    """What `Drift` describes."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Box(np.float32([-1, -3]), np.float32([1, 5]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 4).astype(np.float32)
        return self.state, {}

    def step(self, action):
        velocity = self.state[2:] + 0.1 * action
        self.state = np.concatenate([self.state[:2] + 0.1 * velocity, velocity]).astype(np.float32)
        return self.state, -float(self.state @ self.state), False, False, {}


for _name, _entry, _arguments in (
    ("Clock-v0", Clock, {}),
    ("Timer-v0", Clock, {"terminates_at": 4}),
    ("Recall-v0", Recall, {}),
    ("Rail-v0", Rail, {}),
    ("BrokenObservation-v0", Broken, {"where": "observation"}),
    ("BrokenReward-v0", Broken, {"where": "reward", "value": float("inf")}),
    ("Plane-v0", Plane, {}),
    (
        "Buttons-v0",
        Shaped,
        {
            "observation_space": gym.spaces.Box(-1.0, 1.0, (2,)),
            "action_space": gym.spaces.Discrete(3),
        },
    ),
    (
        "Picture-v0",
        Shaped,
        {
            "observation_space": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "action_space": gym.spaces.Box(-1.0, 1.0, (1,)),
        },
    ),
    (
        "Labelled-v0",
        Shaped,
        {
            "observation_space": gym.spaces.Dict({"speed": gym.spaces.Box(-1.0, 1.0, (1,))}),
            "action_space": gym.spaces.Box(-1.0, 1.0, (1,)),
        },
    ),
):
    if _name not in gym.registry:
        gym.register(_name, entry_point=_entry, max_episode_steps=10, kwargs=_arguments)


def probe_spaces(observation: int = 1, action: int = 1, action_high: float = 2.0) -> Spaces:
    """Observations in [-1, 1], actions in ±action_high, ten steps."""
    one, high = np.ones(observation, np.float32), np.full(action, action_high, np.float32)
    return Spaces(
        observation=Box(jnp.asarray(-one), jnp.asarray(one)),
        action=Box(jnp.asarray(-high), jnp.asarray(high)),
        bounded=(True,) * observation,
        episode_steps=10,
    )


def constant(network, outputs):
    """The same network, whatever its weights, with an output that does not depend on its input."""
    zeros = jax.tree.map(lambda leaf: jnp.asarray(np.zeros_like(leaf)), network)
    outputs = np.asarray(outputs, np.float32)[..., None]
    return eqx.tree_at(lambda n: n.biases[-1], zeros, jnp.asarray(outputs))


def constant_actor(actor, mean: list[float], raw: list[float]):
    """A policy that sees nothing; `raw` is what `Actor.gaussian` squashes to the log deviation."""
    return eqx.tree_at(lambda a: a.body, actor, constant(actor.body, [*mean, *raw]))


def constant_critics(critics, values: list[float]):
    """Members that say one value each, whatever they are asked."""
    said = constant(critics.members, [[value] for value in values])
    return eqx.tree_at(lambda c: c.members, critics, said)
