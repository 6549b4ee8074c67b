"""Real environments, and models of them that are wrong, for the fidelity benchmarks."""

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv, angle_normalize

from dynasac import Pendulum

WRONG_PARAMETERS = {"g": 14.0, "m": 0.6, "l": 1.3}
NOISE = 0.01
"""of the range of each component of the observation, as a standard deviation"""
FRICTION = 0.5  # N m s/rad
TIME_STEP = 0.05  # s


class Noisy(gym.ObservationWrapper):
    """Sensors with noise; its generator starts anew from the seed of a reset."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        box = env.observation_space
        self._deviation = NOISE * (box.high - box.low)
        self._rng = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._rng = np.random.default_rng((seed, 1))
        return super().reset(seed=seed, options=options)

    def observation(self, observation):
        drawn = observation + self._deviation * self._rng.normal(size=observation.shape)
        return drawn.astype(np.float32)


class FrictionPendulumEnv(PendulumEnv):
    """Pendulum-v1 with viscous friction in its bearing."""

    speed_limit = 8.0

    def step(self, u):
        angle, velocity = self.state
        torque = float(np.clip(u, -self.max_torque, self.max_torque)[0])
        cost = angle_normalize(angle) ** 2 + 0.1 * velocity**2 + 0.001 * torque**2
        inertia = self.m * self.l**2
        acceleration = 3 * self.g / (2 * self.l) * np.sin(angle) + 3 * torque / inertia
        acceleration -= FRICTION * velocity / inertia
        velocity = velocity + acceleration * self.dt
        velocity = np.clip(velocity, -self.speed_limit, self.speed_limit)
        self.state = np.array([angle + velocity * self.dt, velocity])
        return self._get_obs(), -cost, False, False, {}


class UnlimitedPendulumEnv(FrictionPendulumEnv):
    """The same without a limit of speed, observed as (angle, velocity).

    The variant of El Asri et al. 2024 (PhIHP). The angle is wrapped: -π and π are one place.
    """

    speed_limit = np.inf

    def __init__(self):
        super().__init__()
        high = np.array([np.pi, np.inf], np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)

    def _get_obs(self):
        angle, velocity = self.state
        return np.array([angle_normalize(angle), velocity], np.float32)


class FrictionPendulum(Pendulum):
    """The exact model of `FrictionPendulumEnv`, and at a friction of 0 one that leaves it out."""

    friction: float = FRICTION  # N m s/rad

    def transition(self, state, action):
        angle, velocity = state
        torque = jnp.clip(action[0], -2.0, 2.0)
        acceleration = 3 * self.g / (2 * self.l) * jnp.sin(angle)
        acceleration += (3 * torque - self.friction * velocity) / (self.m * self.l**2)
        velocity = jnp.clip(velocity + acceleration * TIME_STEP, -8.0, 8.0)
        return jnp.stack([angle + velocity * TIME_STEP, velocity])


class UnlimitedPendulum(Pendulum):
    """A model of `UnlimitedPendulumEnv` that knows nothing of friction."""

    def transition(self, state, action):
        angle, velocity = state
        acceleration = 3 * self.g / (2 * self.l) * jnp.sin(angle)
        acceleration += 3 * jnp.clip(action[0], -2.0, 2.0) / (self.m * self.l**2)
        velocity = velocity + acceleration * TIME_STEP
        return jnp.stack([angle + velocity * TIME_STEP, velocity])

    def observation(self, state):
        angle, velocity = state
        return jnp.stack([angle - 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi)), velocity])

    def state(self, observation):
        return observation


class HeavyPendulum(Pendulum):
    """The pendulum as it would be if its bob were heavier by a third."""

    m: float = 4 / 3  # kg


class TurnedPendulum(Pendulum):
    """A harmful model: the torque acts the wrong way round."""

    def transition(self, state, action):
        return super().transition(state, -action)


def heavier_hopper(factor: float) -> gym.Env:
    """Hopper-v5 with another mass of the torso."""
    env = gym.make("Hopper-v5")
    core = env.unwrapped
    core.model.body("torso").mass *= factor
    return env


STEPS = 200
gym.register("NoisyPendulum-v0", lambda **kw: Noisy(PendulumEnv(**kw)), max_episode_steps=STEPS)
gym.register("FrictionPendulum-v0", FrictionPendulumEnv, max_episode_steps=STEPS)
gym.register("UnlimitedPendulum-v0", UnlimitedPendulumEnv, max_episode_steps=STEPS)
