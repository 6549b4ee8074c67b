"""The system of docs/tutorial.md, which does not come with Gymnasium: a pole to be swung up.

A pole hangs from a cart on a rail. The cart is pushed to and fro until the pole stands, and held
under it. Cart and bearing have friction. `swing_up_model.py` is the rough model of it.
"""

import gymnasium as gym
import numpy as np

GRAVITY = 9.81  # m/s²
TIME_STEP = 0.04  # s
RAIL = 2.4  # m, from the middle to either end
FASTEST = 5.0  # m/s, of the cart
FASTEST_TURN = 9.0  # rad/s, of the pole


class SwingUpEnv(gym.Env):
    """Observation: (x, cos θ, sin θ, ẋ, θ̇), θ from upright. Action: force on the cart, N."""

    observation_space = gym.spaces.Box(
        np.array([-RAIL, -1, -1, -FASTEST, -FASTEST_TURN], np.float32),
        np.array([RAIL, 1, 1, FASTEST, FASTEST_TURN], np.float32),
    )
    action_space = gym.spaces.Box(-12.0, 12.0, (1,), np.float32)

    def __init__(self, cart=1.5, pole=0.4, cart_friction=2.0, pole_friction=0.03):
        self.cart, self.pole = cart, pole  # kg
        self.cart_friction = cart_friction  # N s/m
        self.pole_friction = pole_friction  # N m s
        self.half_length = 0.5  # m, from the bearing to the pole's centre

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.1, 0.1, 4) + np.array([0, np.pi, 0, 0])  # it hangs
        return self._observation(), {}

    def step(self, action):
        x, angle, speed, turn = self.state
        sine, cosine, half = np.sin(angle), np.cos(angle), self.half_length
        mass = self.cart + self.pole
        force = float(action[0]) - self.cart_friction * speed
        push = (force + self.pole * half * turn**2 * sine) / mass
        torque = GRAVITY * sine - push * cosine - self.pole_friction * turn / (self.pole * half)
        turning = torque / (half * (4 / 3 - self.pole * cosine**2 / mass))
        speeding = push - self.pole * half * turning * cosine / mass

        speed = np.clip(speed + TIME_STEP * speeding, -FASTEST, FASTEST)
        turn = np.clip(turn + TIME_STEP * turning, -FASTEST_TURN, FASTEST_TURN)
        x = np.clip(x + TIME_STEP * speed, -RAIL, RAIL)
        angle += TIME_STEP * turn
        self.state = np.array([x, angle, speed, turn])
        reward = (1 + np.cos(angle)) / 2 * (1 - (x / RAIL) ** 2) / (1 + (turn / 4) ** 2)
        return self._observation(), float(reward), bool(abs(x) >= RAIL), False, {}

    def _observation(self):
        x, angle, speed, turn = self.state
        return np.array([x, np.cos(angle), np.sin(angle), speed, turn], np.float32)


gym.register("SwingUp-v0", entry_point=SwingUpEnv, max_episode_steps=250)
