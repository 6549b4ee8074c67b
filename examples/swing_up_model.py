"""The models of docs/tutorial.md: a pole to be swung up, by guessed masses and without friction.

    dynasac train swing_up_env:SwingUp-v0 --model swing_up_model.py:SwingUp --real-episodes 3

`WithFriction` is what the model becomes in the end.
"""

import jax
import jax.numpy as jnp

from dynasac import PhysicsModel

GRAVITY = 9.81  # m/s²
TIME_STEP = 0.04  # s
RAIL = 2.4  # m, from the middle to either end
FASTEST = 5.0  # m/s, of the cart
FASTEST_TURN = 9.0  # rad/s, of the pole


class SwingUp(PhysicsModel):
    """State: (x, θ, ẋ, θ̇), θ from upright. Action: force on the cart, N."""

    cart: float = 0.7  # kg
    pole: float = 0.1  # kg
    half_length: float = 0.5  # m, from the bearing to the pole's centre

    def initial(self, key):
        hanging = jnp.array([0.0, jnp.pi, 0.0, 0.0])
        return hanging + jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)

    def transition(self, state, action):
        x, angle, speed, turn = state
        sine, cosine, half = jnp.sin(angle), jnp.cos(angle), self.half_length
        mass = self.cart + self.pole
        drag, bearing = self.friction(speed, turn)
        push = (action[0] - drag + self.pole * half * turn**2 * sine) / mass
        torque = GRAVITY * sine - push * cosine - bearing / (self.pole * half)
        turning = torque / (half * (4 / 3 - self.pole * cosine**2 / mass))
        speeding = push - self.pole * half * turning * cosine / mass

        speed = jnp.clip(speed + TIME_STEP * speeding, -FASTEST, FASTEST)
        turn = jnp.clip(turn + TIME_STEP * turning, -FASTEST_TURN, FASTEST_TURN)
        x = jnp.clip(x + TIME_STEP * speed, -RAIL, RAIL)
        return jnp.stack([x, angle + TIME_STEP * turn, speed, turn])

    def friction(self, speed, turn):
        """Against the cart, N, and in the bearing, N m: not thought of."""
        return 0.0, 0.0

    def observation(self, state):
        x, angle, speed, turn = state
        return jnp.stack([x, jnp.cos(angle), jnp.sin(angle), speed, turn])

    def state(self, observation):
        x, cosine, sine, speed, turn = observation
        return jnp.stack([x, jnp.arctan2(sine, cosine), speed, turn])

    def reward(self, state, action, next_state):
        x, angle, _, turn = next_state
        return (1 + jnp.cos(angle)) / 2 * (1 - (x / RAIL) ** 2) / (1 + (turn / 4) ** 2)

    def terminal(self, state):
        return jnp.abs(state[0]) >= RAIL


class WithFriction(SwingUp):
    """What was missing, with numbers that are guesses too."""

    cart_friction: float = 0.5  # N s/m
    pole_friction: float = 0.01  # N m s

    def friction(self, speed, turn):
        return self.cart_friction * speed, self.pole_friction * turn
