"""The sections of a run: what was asked, what came out, and what happened on the way."""

import contextlib
import os
import shlex

from .. import checkpoint, evaluation, recording
from ..errors import UsageError, one_line
from . import figures
from .directories import RunData, mapping, number, settings, text
from .figures import Figure, Table
from .page import Beside, Block, Code, Facts, Folded, Listing, Section, Text, Video, flat
from .phase import PhaseMap, phase_map
from .words import clean, count, duration, isolated, plain, told


def headline(run: RunData) -> str:
    """What came out, in one sentence."""
    mean = number(run.evaluation.get("mean_return"))
    spread = number(run.evaluation.get("std_return"))
    episodes = number(run.evaluation.get("episodes"))
    if run.last("real_steps"):
        real = f"after {count(run.last('real_episodes'), 'real episode')} "
        real += f"({count(run.last('real_steps'), 'step')})"
    else:
        real = "without a single real step"
    if run.last("logged_transitions"):
        real += f", beside {count(run.last('logged_transitions'), 'logged transition')}"
    if mean is not None:
        said = f"The trained policy has a mean return of {told(mean)}"
        said += "" if spread is None else f" ± {told(spread, 1)}"
        said += f" over {count(episodes, 'fixed episode')}" if episodes else ""
        regret = _regret(run)
        if regret is not None:
            said += f", {told(abs(regret), 1)} {'below' if regret >= 0 else 'above'} the optimum"
        return f"{said}, {real}."
    latest = run.last("eval_mean_return")
    if latest is None:
        return "Nothing has been evaluated yet."
    return f"Not finished: {real} the policy has a mean return of {told(latest)}."


def _regret(run: RunData) -> float | None:
    """Of the evaluation that is shown, if it was over the standard episodes."""
    evaluated = [row for row in run.rows if number(row.get("eval_mean_return")) is not None]
    newest = evaluated[-1] if evaluated else {}
    final = number(run.evaluation.get("mean_return"))
    if final is not None and final != number(newest.get("eval_mean_return")):
        return None
    return number(newest.get("eval_regret"))


def optimum(run: RunData) -> float | None:
    """That of the environment, if the evaluations are the ones that it is known for."""
    return evaluation.OPTIMAL_RETURN.get(run.env_id) if _regret(run) is not None else None


def facts(run: RunData) -> Facts:
    """The key numbers."""
    mean = number(run.evaluation.get("mean_return"))
    mean = run.last("eval_mean_return") if mean is None else mean
    regret, rung = _regret(run), _rung(run)
    error = run.last("model_error")
    synthetic, updates = run.last("synthetic_transitions"), run.last("gradient_updates")
    best = optimum(run)
    shown = [
        ("Mean return", told(mean), "" if best is None else f"optimum {told(best)}"),
        ("Regret", told(regret, 1), "below the optimum") if regret is not None else None,
        (
            "Real steps",
            told(run.last("real_steps")),
            count(run.last("real_episodes"), "episode"),
        ),
        ("Synthetic", _large(synthetic), "transitions"),
        ("Updates", _large(updates), "of the learner"),
        ("Model", SHORT.get(rung, rung), _error(error)),
        ("Time", duration(run.last("wall_seconds")), _compiling(run)),
    ]
    return Facts(tuple(fact for fact in shown if fact is not None))


SHORT = {
    "exact": "as given",
    "identified": "fitted",
    "residual": "corrected",
    "ensemble": "learned",
}
"""a rung in a word"""


def _rung(run: RunData) -> str:
    rungs = [text(row.get("adapt_rung")) for row in run.rows]
    said = text(mapping(run.summary.get("model")).get("rung"))
    return clean(next((rung for rung in reversed(rungs) if rung), said) or "none")


def _error(error: float | None) -> str:
    return "" if error is None else f"error {figures.percent(error)}"


def _compiling(run: RunData) -> str:
    seconds = number(run.summary.get("compile_seconds"))
    return "" if seconds is None else f"{duration(seconds)} compiling"


def _large(value: float | None) -> str:
    if value is not None and value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return told(value)


def asked(name: str, run: RunData, env_id: str | None) -> Section:
    """The command, the settings that are not the preset's, and all the others folded."""
    found = settings(run.asked)
    blocks: list[Block] = []
    if run.baseline:
        said = f"Environment {isolated(run.env_id)}, agent {isolated(run.baseline)} of "
        said += f"stable-baselines3, seed {plain(run.asked.get('seed'))}, trained by "
        blocks.append(Text(f"{said}`dynasac compare`."))
    elif run.asked:
        blocks.append(Code(command(run, env_id)))
        model = text(run.asked.get("model"))
        said = f"Environment {isolated(run.env_id)}, model {isolated(model or '–')}, preset "
        said += f"{isolated(found.preset or '–')}, seed {plain(run.asked.get('seed'))}."
        blocks.append(Text(said))
    else:
        blocks.append(Text("config.json, which says so, is missing or damaged.", "notice"))
    if found.changed:
        blocks.append(
            Table(
                "Settings that differ from the preset",
                ("setting", "asked for", "preset"),
                tuple(
                    (clean(key), plain(ours), plain(theirs))
                    for key, (ours, theirs) in found.changed.items()
                ),
            )
        )
    elif found.all and found.preset:
        blocks.append(Text("Every setting is the preset's.", "quiet"))
    if found.all:
        rows = tuple((clean(key), plain(value)) for key, value in found.all.items())
        blocks.append(Folded("All settings", (Table("All settings", ("setting", "value"), rows),)))
    versions = mapping(run.asked.get("versions")) | mapping(run.asked.get("packages"))
    if versions:
        rows = tuple((clean(key), plain(value)) for key, value in versions.items())
        table = Table("Versions", ("package", "version"), rows)
        blocks.append(Folded("Versions", (table,)))
    return Section(name, "What was asked", tuple(blocks))


def command(run: RunData, env_id: str | None = None) -> str:
    """The command line that asks for the same."""
    found = settings(run.asked)
    words = ["dynasac", "train", env_id or run.env_id]
    for option, default in (("model", "auto"), ("preset", "default"), ("seed", 0)):
        value = run.asked.get(option, default)
        if value != default:
            words += [f"--{option}", plain(value)]
    if number(run.asked.get("rigs")):
        words += ["--rigs", plain(run.asked["rigs"])]
    if run.asked.get("rigs_in_order") is True:
        words.append("--rigs-in-order")
    if text(run.asked.get("dataset")):
        words += ["--dataset", plain(run.asked["dataset"])]
        for column, names in mapping(run.asked.get("columns")).items():
            if names:
                listed = names if isinstance(names, list) else [names]
                words += [f"--columns.{column.replace('_', '-')}", *map(plain, listed)]
    episodes = number(run.evaluation.get("episodes"))
    if episodes is not None and episodes != 100:
        words += ["--evaluation-episodes", f"{episodes:.0f}"]
    for option, (value, _) in found.changed.items():
        if isinstance(value, bool):
            head, _, last = option.rpartition(".")
            words.append(f"--{head}{'.' if head else ''}{'' if value else 'no-'}{last}")
        else:
            listed = value if isinstance(value, list) else [value]
            words += [f"--{option}", *(plain(item) for item in listed)]
    return shlex.join(clean(word) for word in words)


def decisions(run: RunData) -> Listing | None:
    """The sentence of each real episode that has one."""
    items: list[tuple[str, str]] = []
    for row in run.rows:
        sentence, episodes = text(row.get("decision")), number(row.get("real_episodes"))
        if sentence:
            items.append((f"After {count(episodes, 'real episode')}", isolated(sentence)))
    return Listing(tuple(items)) if items else None


def sections(
    prefix: str, run: RunData, env_id: str | None, model: str | None, room: int
) -> tuple[tuple[Section, ...], int]:
    """All sections of a run, and the bytes that its maps and its video take.

    Arguments:
        prefix: of the names of sections and figures.
        env_id, model: as for `recording.load_run`.
        room: bytes that there are for them.
    """
    best = optimum(run)
    learning = figures.learning_curve(f"{prefix}curve", run, best)
    if learning is None and run.last("eval_mean_return") is not None:
        learning = Text(
            "There is one evaluation, "
            f"{told(run.last('eval_mean_return'))}; a curve begins with the second: "
            "--real-episodes 3 adds three.",
            "quiet",
        )
    spread = figures.returns(f"{prefix}returns", run, best)
    outcome = flat(learning, spread)
    if isinstance(learning, Figure):
        outcome = flat(_side_by_side(learning, spread))
    error = figures.model_error(f"{prefix}error", run)
    found = figures.identified(run)
    chart = figures.parameters(f"{prefix}parameters", found)
    table = figures.identified_table(found) if found else None
    maps, weight = _maps(prefix, run, env_id, model, room)
    video, more = _video(run, env_id, room - weight)
    made = [
        Section(f"{prefix}outcome", "What came out", outcome),
        Section(
            f"{prefix}model",
            "The model",
            flat(_side_by_side(error, chart), table, decisions(run)),
        ),
        Section(f"{prefix}maps", "Policy and value", maps),
        Section(f"{prefix}video", "Video", flat(video)),
        Section(
            f"{prefix}effort",
            "Data and time",
            flat(
                _side_by_side(
                    figures.transition_counts(f"{prefix}counts", run),
                    figures.time_spent(f"{prefix}time", run),
                )
            ),
        ),
        Section(f"{prefix}learner", "The learner", flat(figures.learner(f"{prefix}losses", run))),
    ]
    return (
        asked(f"{prefix}asked", run, env_id),
        *(section for section in made if section.blocks),
    ), weight + more


def _maps(
    prefix: str, run: RunData, env_id: str | None, model: str | None, room: int
) -> tuple[tuple[Block, ...], int]:
    """Maps of the policy, or why there are none, and the bytes that they take."""
    if run.baseline:
        return (), 0
    again = _again("report", run, env_id)
    said = (
        f"There is no room for maps of the policy; {again} has them, if its system has two states."
    )
    heavy = Text(said, "notice")
    if room < LIGHTEST_MAPS:
        return (heavy,), 0
    plane, remark = _plane(run, env_id, model)
    if plane is None:
        return flat(remark), 0
    pair = (
        figures.policy_map(f"{prefix}policy", plane),
        figures.value_map(f"{prefix}value", plane),
    )
    weight = sum(figure.weight for figure in pair)
    if weight > room:
        return (heavy,), 0
    return (Beside(pair), Folded("The episodes drawn", (figures.paths_table(plane),))), weight


LIGHTEST_MAPS = 100_000
"""bytes of the maps of a policy whose episodes are short"""


def _side_by_side(*blocks: Block | None) -> Block | None:
    found = flat(*blocks)
    if len(found) > 1:
        return Beside(found)
    return found[0] if found else None


def _plane(
    run: RunData, env_id: str | None, model: str | None
) -> tuple[PhaseMap | None, Text | None]:
    """The maps, or why there are none."""
    named = text(run.asked.get("model"))
    if not (run.directory / "policy" / "policy.safetensors").exists():
        return None, Text("Maps of the policy need the folder policy/, which is missing.", "notice")
    own = named.endswith(".py") or ":" in named
    try:
        # of a model that is not named, a map needs only where states lie, which known physics tells
        agent, _ = recording.load_run(run.directory, env_id, model)
        with contextlib.closing(agent):
            plane = phase_map(agent)
    except UsageError as error:
        return None, Text(f"There are no maps of the policy: {clean(str(error))}", "notice")
    except Exception as error:  # environment and model are somebody else's code
        return None, Text(f"There are no maps of the policy: {clean(one_line(error))}", "notice")
    if plane is None and own and model is None:
        again = _again("report", run, env_id)
        said = f"Maps of the policy need the run's model: {again} --model FILE.py:Class"
        return None, Text(said, "notice")
    return plane, None


def _again(name: str, run: RunData, env_id: str | None) -> str:
    """A command about a run, which names an environment that does not come with Gymnasium."""
    ours = env_id or (None if run.env_id in evaluation.registered() else "MODULE:ID")
    own = ["--env", ours] if ours else []
    return shlex.join(["dynasac", name, clean(str(run.directory)), *own])


def _video(run: RunData, env_id: str | None, room: int) -> tuple[Video | Text | None, int]:
    path = run.directory / "video.mp4"
    if run.baseline:
        return None, 0
    try:
        with checkpoint.regular(path) as file:
            content = file.read(room + 1)
            weight = -(-os.fstat(file.fileno()).st_size // 3) * 4
    except OSError:
        said = f"There is none yet: {_again('record', run, env_id)}, then make the page again."
        return Text(said, "quiet"), 0
    if weight > room:
        size = f"{weight * 3 / 4e6:.1f} MB"
        return Text(f"{path.name} in the run's directory ({size}) is too large for this page."), 0
    return Video(
        content, f"Episodes of the deterministic policy on {isolated(run.env_id)}."
    ), weight


def overview(name: str, found: list[RunData]) -> Section:
    """Several runs next to each other."""
    by_env: dict[str, list[RunData]] = {}
    for run in found:
        by_env.setdefault(run.env_id, []).append(run)
    rows = tuple(
        (
            isolated(run.name),
            isolated(run.env_id),
            isolated(run.baseline or text(run.asked.get("model")) or "–"),
            plain(run.asked.get("seed")),
            told(run.last("eval_mean_return")),
            told(_regret(run), 1),
            told(run.last("real_steps")),
            told(run.last("synthetic_transitions")),
            duration(run.last("wall_seconds")),
        )
        for run in found
    )
    columns = (
        "run", "environment", "model or agent", "seed", "mean return", "regret", "real steps",
        "synthetic transitions", "time",
    )  # fmt: skip
    charts = (
        figures.several_runs(f"{name}-{k}", env_id, runs)
        for k, (env_id, runs) in enumerate(by_env.items())
    )
    return Section(name, "Overview", flat(Table("Runs", columns, rows), *charts))
