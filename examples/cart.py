"""A system that does not come with Gymnasium: a cart on a rail, to be pushed to the origin.

    dynasac train cart:Cart-v0 --model cart.py:Cart

`Cart` is the model that planning uses; `CartEnv` stands in for the real thing: a little heavier,
with more friction.
"""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from dynasac import PhysicsModel


class Cart(PhysicsModel):
    """State and observation: position, m; velocity, m/s. Action: force, N."""

    mass: float = 1.0  # kg
    friction: float = 0.1  # N s/m

    def initial(self, key):
        return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    def transition(self, state, action):
        position, velocity = state
        acceleration = (action[0] - self.friction * velocity) / self.mass
        velocity = velocity + 0.05 * acceleration
        return jnp.stack([position + 0.05 * velocity, velocity])

    def reward(self, state, action, next_state):
        return -(next_state[0] ** 2) - 0.1 * next_state[1] ** 2 - 0.01 * action[0] ** 2


class CartEnv(gym.Env):
    """The real cart."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-5.0, 5.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        position, velocity = self.state
        velocity += 0.05 * (float(action[0]) - 0.2 * velocity) / 1.05
        position += 0.05 * velocity
        self.state = np.array([position, velocity], np.float32)
        reward = -(position**2) - 0.1 * velocity**2 - 0.01 * float(action[0]) ** 2
        return self.state, float(reward), False, False, {}


gym.register("Cart-v0", entry_point=CartEnv, max_episode_steps=100)
