"""The ladder of fidelity: how wrong the model at hand is, and the best that can be done about it.

exact → identified → residual, or ensemble where there are no equations, or none. A rung is climbed
to when it predicts real transitions that it has not been fitted to better than the one below.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..errors import UsageError
from ..models import Called, DynamicsModel, HostModel, PhysicsModel, Turned, residual
from ..models.ensemble import EnsembleConfig
from ..models.simulator import host_state
from ..planning import PlanningConfig, Trust, full_trust
from ..spaces import Spaces
from ..types import Transition, follows
from . import check
from .identify import Identification, Parameter, identify

Rung = Literal["none", "exact", "identified", "residual", "ensemble"]
Asked = Literal["auto", "none", "identify", "residual", "ensemble"]


class Adaptation(NamedTuple):
    """The model that planning uses, how far it is trusted, and why."""

    model: DynamicsModel | HostModel | None
    rung: Rung
    trust: Trust
    after_transitions: int = 0
    """how many real transitions there had been, logged ones included, when it was decided"""
    changed: bool = True
    """whether the model is another one than before them"""
    error: float | None = None
    """of the model's predictions one step ahead, on real transitions that it was not fitted to, as
    a share of how much they move; noise apart; None before there is evidence"""
    errors: dict[str, float] = {}  # noqa: RUF012  (never written to)
    """that of each rung that was tried"""
    parameters: tuple[Parameter, ...] = ()
    """what identification found, if it was tried"""
    sentence: str = ""
    """evidence and decision, for people"""


FEWEST = 20
"""transitions below which nothing is decided"""
NEGLIGIBLE = 3e-3
"""an error below this is float rounding, and the rare step on which a comparison differs"""
FITTED, LEARNED = 0.97, 0.9
"""other parameters, or something learned, must leave at most this share of the error; networks can
learn from the noise of sensors too, so they must leave less"""
LARGEST = 100.0
"""errors beyond this, of which some are not finite, are all the same"""
DOUBT = 3.0
"""how much more uncertain than of any real transition it had not seen a learned model may be of a
step that is learned from: with less, there is no way to what was not seen"""
ROLLOUT_ERROR = 0.3
"""how much error, in movements of a step, the rollouts of a learned model may gather"""


def at_hand(model: DynamicsModel | HostModel | None, config: PlanningConfig) -> Adaptation:
    """What is done before there is any evidence: the model is believed."""
    return Adaptation(model, "none" if model is None else "exact", full_trust(config))


def seen(adaptation: Adaptation, spaces: Spaces) -> Spaces:
    """The spaces, with what a model learned from nothing has seen.

    That is for the components that the environment leaves unbounded, and no physics was there to
    measure.
    """
    model = adaptation.model
    if isinstance(model, residual.LearnedModel) and isinstance(model.base, residual.Still):
        return spaces._replace(observation=model.observations)
    return spaces


class _Candidate(NamedTuple):
    rung: Rung
    model: DynamicsModel
    error: float
    """as in `Adaptation`"""
    one_step: float
    """root mean square of the errors of one step, noise included, of transitions not fitted to"""
    open_loop: float
    """root mean square of the errors of several steps without looking in between, as a share of how
    much as many steps move: noise does not add up there, and what is wrong does"""
    uncertainty: float = 0.0
    """the largest, of transitions that a learned model had not seen"""


def climb(
    given: DynamicsModel | HostModel | None,
    asked: Asked,
    transitions: Transition,
    after_transitions: int,
    before: Adaptation,
    spaces: Spaces,
    planning: PlanningConfig,
    learning: EnsembleConfig,
    seed: int,
) -> Adaptation:
    """Try the model on real transitions, and what can be made of it; choose what predicts best.

    Arguments:
        given: the model as the user wrote it; None where everything is to be learned.
        asked: a rung to stay on, or "auto".
        transitions: all real ones, along one leading axis in the order of time.
        after_transitions: how many there have been, with those that are kept no longer.
        before: what was decided last time.
    """
    rows = len(transitions.reward)
    if rows < FEWEST:
        said = f"{rows} real transitions are too few to judge a model by ({FEWEST} are needed)"
        return before._replace(after_transitions=after_transitions, changed=False, sentence=said)

    if isinstance(given, HostModel):
        return _simulator(given, transitions, after_transitions, before, spaces, planning)

    def learned(rung: Rung, base: DynamicsModel | None) -> _Candidate:
        return _learned(rung, base, transitions, spaces, learning, seed)

    found: Identification | None = None
    notes: list[str] = []
    if given is None or asked == "ensemble":
        best = learned("ensemble", None)
        tried = [best]
    else:
        best = _given(given, transitions, spaces)
        tried = [best]
        if asked != "auto" or best.one_step > NEGLIGIBLE:
            best, tried, found, notes = _fitted(best, transitions, spaces, asked == "identify")
        if asked == "residual" or (asked == "auto" and best.error > NEGLIGIBLE):
            try:
                tried.append(learned("residual", best.model))
            except UsageError as error:
                notes.append(f"it cannot be corrected: {error}")
                tried.append(learned("ensemble", None))
            if asked == "residual" or _predicts_better(tried[-1], best):
                best = tried[-1]
    errors = {candidate.rung: candidate.error for candidate in (*tried, best)}
    trust = _trust(best, planning)
    return Adaptation(
        model=best.model,
        rung=best.rung,
        trust=trust,
        after_transitions=after_transitions,
        changed=best.rung != before.rung or not _alike(best.model, before.model),
        error=best.error,
        errors=errors,
        parameters=found.parameters if found else (),
        sentence=_sentence(best, errors, trust, notes, rows),
    )


def _simulator(
    given: HostModel,
    transitions: Transition,
    after_transitions: int,
    before: Adaptation,
    spaces: Spaces,
    planning: PlanningConfig,
) -> Adaptation:
    """A simulator is believed as far as it predicts; nothing is fitted to it or put on it."""
    same = before._replace(after_transitions=after_transitions, changed=False)
    try:
        host_state(given, np.asarray(transitions.observation))
        called = Called(given)
    except UsageError as error:
        return same._replace(sentence=f"the simulator cannot be tried: {error}")
    tried = _given(called, transitions, spaces)
    errors = {"exact": tried.error}
    trust = _trust(tried, planning)
    said = _sentence(tried, errors, trust, [], len(transitions.reward))
    return same._replace(error=tried.error, errors=errors, trust=trust, sentence=said)


def _given(
    model: DynamicsModel, transitions: Transition, spaces: Spaces, rung: Rung = "exact"
) -> _Candidate:
    found = check.prediction_error(model, transitions, spaces)
    moves = min(found.systematic, found.beyond_sensors)
    if not np.isfinite(found.systematic):
        moves = LARGEST
    # rewards are of the states behind noisy observations: their error is no evidence then
    quiet = found.beyond_sensors > 0.9 * _rms(found.one_step)
    reward = found.reward if quiet or _rms(found.one_step) <= NEGLIGIBLE else 0.0
    error = min(LARGEST, max(moves, reward, found.terminations**0.5))
    return _Candidate(rung, model, error, _rms(found.one_step), _open_loop(found.k_step))


class Refit(NamedTuple):
    """What real transitions make of physics without anything that is learned."""

    model: PhysicsModel
    """the one given, if nothing predicts them better"""
    parameters: tuple[Parameter, ...]
    """those that predict better than before; none if there are none"""
    sentence: str
    """what was changed, or why the parameters cannot be fitted; empty if nothing was"""

    def summary(self) -> dict[str, Any]:
        """Without the model, as JSON holds it."""
        return {"parameters": _listed(self.parameters), "sentence": self.sentence}


def refit(model: PhysicsModel, transitions: Transition, spaces: Spaces) -> Refit:
    """The parameters, and directions of actions, with which a model predicts better, if any do.

    Arguments:
        transitions: real ones, along one leading axis in the order of time.
    """
    best, _, found, notes = _fitted(_given(model, transitions, spaces), transitions, spaces, False)
    assert isinstance(best.model, PhysicsModel)  # as what it is made of
    better = found is not None and best.model is found.model
    return Refit(best.model, found.parameters if found and better else (), "; ".join(notes))


class _Fitted(NamedTuple):
    best: _Candidate
    tried: list[_Candidate]
    """the one given first"""
    found: Identification | None
    notes: list[str]


def _fitted(given: _Candidate, transitions: Transition, spaces: Spaces, forced: bool) -> _Fitted:
    """Turn actions that act the other way, then fit parameters: `forced`, or if that is better."""
    best, tried, notes = _turned(given, transitions, spaces), [given], []
    if best is not given:
        tried.append(best)
        notes.append(_told_turned(best.model))
    found, reason = _identified(best.model, transitions, spaces)
    if found is None:
        notes.append(f"its parameters cannot be identified: {reason}")
    else:
        tried.append(_given(found.model, transitions, spaces, "identified"))
        if forced or _fits_better(tried[-1], best, found.blurred):
            best = tried[-1]
            notes.append(found.sentence())
    return _Fitted(best, tried, found, notes)


def _turned(candidate: _Candidate, transitions: Transition, spaces: Spaces) -> _Candidate:
    """The same physics with the actions turned round that act the other way, if any do."""
    model = candidate.model
    if not isinstance(model, PhysicsModel):
        return candidate
    best, signs = candidate, np.ones(spaces.action.size, np.float32)
    for index in range(len(signs)):
        other = np.where(np.arange(len(signs)) == index, -signs, signs)
        turned = Turned(model, jnp.asarray(other), spaces.action)
        tried = _given(turned, transitions, spaces, "identified")
        if tried.one_step < LEARNED * best.one_step and tried.open_loop < LEARNED * best.open_loop:
            best, signs = tried, other
    return best


def _told_turned(model: DynamicsModel) -> str:
    assert isinstance(model, Turned)
    names = ", ".join(f"action[{i}]" for i in np.flatnonzero(np.asarray(model.signs) < 0))
    return f"{names}: acts the other way round"


def _identified(
    given: DynamicsModel, transitions: Transition, spaces: Spaces
) -> tuple[Identification | None, str]:
    """The parameters that fit best, or why there are none.

    They are tried on the transitions they were fitted to, which are many more than they are.
    """
    if not isinstance(given, PhysicsModel):
        return None, f"{given.name} is no PhysicsModel"
    try:
        return identify(given, transitions, spaces.action), ""
    except UsageError as error:
        return None, str(error)


def _learned(
    rung: Rung,
    base: DynamicsModel | None,
    transitions: Transition,
    spaces: Spaces,
    learning: EnsembleConfig,
    seed: int,
) -> _Candidate:
    """Its one-step errors are those of networks that had not seen the transitions."""
    model, unseen = residual.fit(base, transitions, spaces, learning, seed)
    found = np.concatenate([transitions.next_observation, transitions.reward[:, None]], axis=1)
    said = np.concatenate([unseen.next_observation, unseen.reward[:, None]], axis=1)
    moved = transitions.next_observation - transitions.observation
    unit = np.append(np.sqrt((moved**2).mean(0)), transitions.reward.std())
    wrong = (found - said) / np.maximum(unit, 1e-9)
    square = (wrong**2).mean(0)
    # one rare event, a wall or a goal, that is missed by far says no more than that it is missed
    wrong = np.clip(wrong, -1.0, 1.0)
    # a sensor's noise enters the error of the step to an observation and, with the other sign, that
    # of the step from it
    lagged = (wrong[1:] * wrong[:-1])[follows(transitions)[1:]]
    noise = np.minimum(lagged.mean(0), 0) if len(lagged) else np.zeros(len(unit))
    own = np.maximum((wrong**2).mean(0) + 2 * noise, 0)
    # rewards are no sensor's; what an end pays is judged with the ends
    going = ~np.asarray(transitions.terminated | unseen.terminated)
    own[-1] = (wrong[going, -1] ** 2).mean() if going.any() else 0.0
    misjudged = float((unseen.terminated != transitions.terminated).mean())
    error = max(float(own[:-1].mean() ** 0.5), float(own[-1] ** 0.5), misjudged**0.5)
    ahead = check.k_step_errors(model, transitions, spaces)
    one_step = float(square[:-1].mean() ** 0.5)
    doubted = float(unseen.uncertainty.max())
    return _Candidate(rung, model, error, one_step, _open_loop(ahead), doubted)


def _open_loop(k_step: dict[int, float]) -> float:
    return _rms(tuple(error for steps, error in k_step.items() if steps > 1))


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else np.inf


def _fits_better(candidate: _Candidate, than: _Candidate, blurred: bool) -> bool:
    """Whether other parameters do; `blurred` if the data hardly tell some of them.

    Feedback that holds an unstable system still hides its parameters in the noise, and one that
    falls too slowly then has the smaller errors open loop, because it does not multiply the noise
    of the first observation. So the next step counts as well.
    """
    if blurred or not np.isfinite(than.open_loop):
        return candidate.one_step < FITTED * than.one_step
    further = candidate.open_loop < FITTED * than.open_loop
    return further and candidate.one_step < 1.03 * than.one_step


def _predicts_better(candidate: _Candidate, than: _Candidate) -> bool:
    """Whether what was learned does, of one step that it has not seen, and of several."""
    ahead = candidate.open_loop < LEARNED * than.open_loop or not np.isfinite(than.open_loop)
    closer = candidate.one_step < LEARNED * than.one_step
    return ahead and closer and candidate.error < than.error


def _trust(best: _Candidate, planning: PlanningConfig) -> Trust:
    """The larger the error, the more real transitions in a batch and the shorter the rollouts."""
    believed = full_trust(planning)
    real = jax.device_put(np.float32(min(1.0, max(planning.real_fraction, best.error))))

    def steps(most: int) -> Int[Array, ""]:
        return jax.device_put(np.int32(np.clip(ROLLOUT_ERROR / max(best.error, 1e-6), 1, most)))

    expansion = steps(planning.value_expansion)
    if best.rung not in ("residual", "ensemble"):
        return Trust(real, believed.horizon, expansion, believed.uncertainty)
    doubt = jax.device_put(np.float32(DOUBT * max(1.0, best.uncertainty)))
    return Trust(real, steps(planning.horizon), expansion, doubt)


def _alike(one: DynamicsModel, other: Any) -> bool:
    """Whether two models on one rung have about the same numbers."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a, b, rtol=1e-3) for a, b in pairs)


NAMES = {
    "exact": "the model as given",
    "identified": "the model with fitted parameters",
    "residual": "the model with a learned correction",
    "ensemble": "a model learned from nothing",
}


def _sentence(
    best: _Candidate, errors: dict[str, float], trust: Trust, notes: list[str], rows: int
) -> str:
    tried = ", ".join(f"{NAMES[rung]} {error:.1%}" for rung, error in errors.items())
    real = float(trust.real_fraction)
    use = "real transitions alone" if real >= 1 else f"{NAMES[best.rung]}, {real:.0%} real rows"
    said = f"error on {rows} real transitions: {tried}; planning with {use}"
    return "; ".join([said, *notes])


def described(adaptation: Adaptation) -> dict[str, Any]:
    """All of it but the arrays, as JSON holds it."""
    return {
        "rung": adaptation.rung,
        "after_transitions": adaptation.after_transitions,
        "changed": adaptation.changed,
        "turned": isinstance(_physics(adaptation.model), Turned),
        "error": adaptation.error,
        "errors": dict(adaptation.errors),
        "parameters": _listed(adaptation.parameters),
        "sentence": adaptation.sentence,
    }


def _listed(parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    return [
        {**dataclasses.asdict(p), "standard_error": _finite(p.standard_error)} for p in parameters
    ]


def _physics(model: Any) -> Any:
    """What lies below a learned correction."""
    return model.base if isinstance(model, residual.LearnedModel) else model


def template(
    described: dict[str, Any],
    given: DynamicsModel | HostModel | None,
    spaces: Spaces,
    planning: PlanningConfig,
    learning: EnsembleConfig,
) -> Adaptation:
    """The adaptation that was described, its arrays still to be filled in.

    Raises:
        UsageError: it cannot be one of the model that was given.
    """
    start = at_hand(given, planning)
    rung = described.get("rung")
    model = given
    if described.get("turned") and isinstance(given, PhysicsModel) and rung != "ensemble":
        model = given = Turned(given, jnp.ones(spaces.action.size), spaces.action)
    if rung in ("residual", "ensemble") and not isinstance(given, HostModel):
        base = given if rung == "residual" else None
        model = residual.create(base, spaces, learning)
    elif rung not in ("none", "exact", "identified"):
        raise UsageError(f"the saved model is on the rung {rung!r}, which does not exist")
    if (model is None) != (rung == "none"):
        raise UsageError(
            f"the saved model is {rung}: name it as it was named in training (--model)"
        )
    parameters = described.get("parameters", [])
    try:
        return start._replace(
            model=model,
            rung=rung,
            after_transitions=int(described["after_transitions"]),
            changed=bool(described["changed"]),
            error=None if described["error"] is None else float(described["error"]),
            errors={str(name): float(error) for name, error in described["errors"].items()},
            parameters=tuple(
                Parameter(
                    str(p["name"]),
                    float(p["before"]),
                    float(p["after"]),
                    np.inf if p["standard_error"] is None else float(p["standard_error"]),
                )
                for p in parameters
            ),
            sentence=str(described["sentence"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"the description of the saved model is damaged: {error!r}") from None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
