"""Reports: what is in them, whatever state the directories are in and whatever they are called."""

import html.parser
import json
import re
import shutil
import sys
from importlib import resources
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL, untrained_run

import dynasac
from dynasac import DynaSAC, UsageError, cli, report
from dynasac.report import comparison as compared
from dynasac.report import directories, figures, phase, run, words
from dynasac.spaces import Box, Spaces

HOSTILE = '</script><script>window.pwned=1</script>"><img src=x onerror=window.pwned=1>'
STRANGE = (
    "y" * 400,
    "ascenseur 🛗 Größe 重力",
    "\u202egnp.exe\u202c שלום عربي",
    "{{7*7}}\x07\ud800",
)
DECISION = "error on 200 real transitions: the model as given 3.6%; g 14 → 13.1"


class Reading(html.parser.HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.headings: list[int] = []
        self.charts: dict = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        within = self.open[-1] if self.open else ""
        if within == "script" and self.tags[-1][1].get("id") == "charts":
            self.charts = json.loads(data, parse_constant=pytest.fail)
        elif within not in ("script", "style"):
            self.text += data


def read(written: report.Written) -> Reading:
    content = written.path.read_bytes()
    assert len(content) == written.bytes < 6_000_000
    page = Reading(content.decode())
    assert not page.open
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.headings.count(1) == 1
    steps = np.diff(page.headings)
    assert page.headings[0] == 1
    assert (steps <= 1).all()
    for _, attributes in page.tags:  # nothing is loaded from anywhere
        for name in ("src", "href", "poster", "srcset", "action"):
            assert re.match(r"#|\./|data:", attributes.get(name, "#")), attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids
    return page


def measured_run(
    directory: Path, env_id: str = "Pendulum-v1", decision: str = DECISION, policy: bool = True
) -> Path:
    """A run with everything in it, of an agent that has learned nothing."""
    untrained_run(directory, DynaSAC("Pendulum-v1", config=SMALL, seed=4))
    if not policy:
        shutil.rmtree(directory / "policy")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "env_id": env_id}))
    header = (
        "real_episodes,real_steps,synthetic_transitions,gradient_updates,train_return,"
        "eval_mean_return,eval_regret,model_error,adapt_rung,error_exact,error_identified,decision,"
        "critic_loss,actor_loss,temperature,entropy,q_value,collect_seconds,adapt_seconds,"
        "plan_seconds,evaluate_seconds,wall_seconds"
    )
    quoted = '"' + decision.replace('"', '""') + '"'
    rows = (
        "0,0,1536000,3000,,-150.5,24.6,,exact,,,,0.3,2,0.01,-2,-2,0,0,10,1,11.5",
        f"1,200,3072000,6000,-324,-131.9,6,0.001,identified,0.036,0.001,{quoted},"
        "0.4,-17,0.009,-1.8,16,1,3,20,2,26.5",
    )
    text = "\n".join([header, *rows]) + "\n"
    (directory / "metrics.csv").write_text(text, encoding="utf-8", errors="replace")
    returns = [-150.0 + k for k in range(40)]
    summary = {
        "env_id": env_id,
        "seed": 4,
        "real_episodes": 1,
        "real_steps": 200,
        "synthetic_transitions": 3072000,
        "gradient_updates": 6000,
        "wall_seconds": 27.0,
        "compile_seconds": 5.0,
        "evaluation": {
            "episodes": 100, "first_seed": 10000, "mean_return": -131.9, "std_return": 11.5,
            "returns": returns,
        },
        "model": {
            "name": "Pendulum", "rung": "identified", "parameters": {}, "error": 0.001,
            "identified": [
                {"name": "g", "before": 14.0, "after": 10.0, "standard_error": 0.1},
                {"name": "m", "before": 0.6, "after": 0.58, "standard_error": None},
            ],
            "decision": decision,
        },
    }  # fmt: skip
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def written_comparison(directory: Path, names=("dynasac", "sb3-ppo"), longest=4000) -> Path:
    """The file of a comparison in which the last run of the last agent failed."""
    agents = {}
    for k, name in enumerate(names):
        steps = [0, 1000, 2000] if k == 0 else [0, 2000, longest]
        runs = [
            {
                "seed": seed, "steps": steps, "returns": [-900, -300, -140.0 - seed - 30 * k],
                "final": -140.0 - seed - 30 * k, "steps_to_threshold": 2000, "seconds": 30.5,
                "gradient_updates": 8000, "error": None, "directory": f"agent-{k}/seed-{seed}",
            }
            for seed in (0, 1)
        ]  # fmt: skip
        if k == len(names) - 1:
            runs[-1] |= {"final": None, "error": f"it broke: {name}", "steps": [], "returns": []}
        value = -140.5 - 30 * k
        agents[name] = {
            "about": f"what {name} is",
            "settings": {"sac": {"hidden": [64, 64]}, "adapt": "auto"},
            "runs": runs,
            "iqm": {"value": value, "low": value - 2, "high": value + 2},
            "mean": {"value": value, "low": value - 2, "high": value + 2},
            "curve": {
                "steps": steps, "iqm": [-900, -300, value], "low": [-950, -350, value - 2],
                "high": [-850, -250, value + 2],
            },
            "steps_to_threshold": {"median": 2000.0, "reached": 2, "runs": 2},
            "seconds": {"median": 30.5},
        }  # fmt: skip
    content = {
        "format": 1, "env_id": "Pendulum-v1", "model": "auto", "preset": "default",
        "seeds": [0, 1], "real_steps": dict.fromkeys(names, 4000),
        "evaluation": {"episodes": 100, "first_seed": 10000}, "optimum": -125.9,
        "threshold": -200.0, "versions": {"jax": "1"}, "machine": "a machine",
        "date": "2026-01-02", "agents": agents,
        "improvement": [
            {"better": names[0], "than": names[-1], "probability": 0.9, "low": 0.7, "high": 1.0}
        ],
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "comparison.json").write_text(json.dumps(content))
    return directory


def test_a_run_and_what_is_said_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = measured_run(Path("my run"))
    (directory / "video.mp4").write_bytes(b"not really a video")
    assert cli.run(["report", "my run"]) == 0
    said = capsys.readouterr().out
    assert "wrote my run/report.html" in said
    content = (directory / "report.html").read_bytes()
    page = read(report.Written(directory / "report.html", len(content), ()))
    for part in (
        "mean return of −131.9 ± 11.5 over 100 fixed episodes, 6.0 below the optimum, after 1 real "
        "episode (200 steps).",
        "dynasac train Pendulum-v1 --seed 4",
        "--sac.hidden 16 16",
        "--adapt none",
        "3.6%; g 14 → 13.1",
        "−150.5 after 0 real episodes, −131.9 after 1 real episode. The optimum",
        "Learned from 200 real transitions and 3,072,000 synthetic ones: 15,360 for each",
        "27.0 s in all: collecting 1.0 s, adapting 3.0 s, planning 20.0 s, evaluating 2.0 s, "
        "other 1.0 s. 5.0 s of them went into compiling.",
        "critic loss 0.3 → 0.4",
        "The charts need JavaScript",
    ):
        assert part in words_of(page), part
    assert set(page.charts["charts"]) == {
        "curve", "returns", "error", "parameters", "policy", "value", "counts", "time", "losses",
    }  # fmt: skip
    video = next(attributes for tag, attributes in page.tags if tag == "video")
    assert video["src"].startswith("data:video/mp4;base64,bm90")
    assert "autoplay" not in video
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy


def words_of(page: Reading) -> str:
    return re.sub(r"\s+", " ", page.text.replace("\u2068", "").replace("\u2069", ""))


def test_every_chart_says_the_same_in_words_and_in_a_table(tmp_path):
    one = directories.gather(measured_run(tmp_path / "run"))
    assert isinstance(one, directories.RunData)
    chart = figures.learning_curve("curve", one, -125.9)
    assert chart is not None
    assert chart.data[0]["y"] == [-150.5, -131.9]
    assert [row[2] for row in chart.table.rows] == ["−150.5", "−131.9"]
    found = figures.identified(one)
    parameters = figures.parameters("parameters", found)
    assert parameters is not None
    fitted, apart = parameters.data
    assert fitted["x"] == pytest.approx([100 * 10 / 14])
    assert fitted["error_x"]["array"] == pytest.approx([100 * 1.96 * 0.1 / 14])
    assert apart["y"] == ["\u2068m\u2069"]
    assert "g\u2069 14 → 10 ± 0.2" in parameters.says
    assert parameters.table.rows[1][-1] == "not told apart by the data"
    spread = figures.returns("returns", one, None)
    assert spread is not None
    assert sum(spread.data[0]["y"]) == 40


def test_a_comparison(tmp_path):
    directory = written_comparison(tmp_path / "comparison")
    inside = directory / "agent-0" / "seed-1"
    inside.mkdir(parents=True)
    (inside / "report.html").touch()
    page = read(report.write_report([directory]))
    said = words_of(page)
    for part in (
        "dynasac ends highest, with an interquartile mean of −140.5 (95% interval −142.5 to "
        "−138.5); no other interval reaches it, which is no proof with so few seeds.",
        "1 run failed: sb3-ppo, seed 1.",
        "it broke: sb3-ppo",
        "dynasac over sb3-ppo 90%",
        "steps to −200",
        "2 agents · 2 seeds · 100 evaluation episodes each · a machine · 2026-01-02",
        "what sb3-ppo is",
        "sac.hidden",
    ):
        assert part in said, part
    assert set(page.charts["charts"]) == {"curve", "finals", "improvement"}
    links = [a["href"] for tag, a in page.tags if tag == "a" and a["href"].startswith("./")]
    assert links == ["./agent-0/seed-1/report.html"]
    rings = [d for d in page.charts["charts"]["finals"]["data"] if "text" in d]
    assert [len(ring["x"]) for ring in rings] == [2, 1]  # every seed that did not fail


def test_a_comparison_claims_no_more_than_its_seeds_and_steps_allow(tmp_path):
    directory = written_comparison(tmp_path / "comparison")
    one = directories.gather(directory)
    assert isinstance(one, directories.ComparisonData)
    agents = one.content["agents"]
    agents["sb3-ppo"]["iqm"] |= {"value": -141.0, "low": None, "high": None}
    assert "; not clearly above ⁨sb3-ppo⁩." in compared.headline(one)
    agents["dynasac"]["iqm"] |= {"low": None, "high": None}
    assert "−140.5; too few seeds to say how sure that is." in compared.headline(one)
    chart = figures.final_returns("finals", one)
    assert chart is not None
    assert "interquartile mean (too few seeds for an interval)" in chart.says

    agents["dynasac"]["steps"], agents["sb3-ppo"]["steps"] = {"median": 4000}, {"median": 102_400}
    said = compared.headline(one)
    assert "The real steps are not equal: ⁨dynasac⁩ 4,000, ⁨sb3-ppo⁩ 102,400." in said
    assert [row[4] for row in compared.results(one).rows] == ["4,000", "102,400"]
    pair = {"better": "dynasac", "than": "sb3-ppo", "better_steps": 4000}
    one.content["improvement"] = [
        {**pair, "than_steps": 102_400, "probability": 0.16, "low": 0.03, "high": 0.53},
        {**pair, "than_steps": 4000, "probability": 0.72, "low": None, "high": None},
    ]
    chart = figures.improvement("improvement", one)
    assert chart is not None
    assert "after 4,000 and 102,400 steps 16%" in chart.says
    assert "after 4,000 steps each 72%" in chart.says
    assert len(set(chart.data[0]["y"])) == 2


def test_very_unequal_budgets_are_drawn_on_a_logarithmic_axis(tmp_path):
    alike = directories.gather(written_comparison(tmp_path / "alike"))
    unequal = directories.gather(written_comparison(tmp_path / "unequal", longest=100_000))
    chart = figures.comparison_curves("curve", alike)
    assert chart is not None
    assert chart.layout["xaxis"].get("type") is None
    chart = figures.comparison_curves("curve", unequal)
    assert chart is not None
    assert chart.layout["xaxis"]["type"] == "log"
    assert chart.layout["xaxis"]["ticktext"][0] == "0"
    lines = [line for line in chart.data if "customdata" in line]
    assert all(min(line["x"]) > 0 for line in lines)
    assert [point[2] for point in lines[1]["customdata"]] == ["0", "2,000", "100,000"]
    assert "logarithmic" in chart.says


@pytest.mark.parametrize("named", ["../../outside", "/etc", "javascript:alert(1)", "a\0b", ""])
def test_a_comparison_links_to_nothing_outside(tmp_path, named):
    directory = written_comparison(tmp_path / "deep" / "comparison")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "report.html").touch()
    one = directories.gather(directory)
    assert isinstance(one, directories.ComparisonData)
    assert compared._link(one, {"directory": named}, directory) is None
    (directory / "link").symlink_to(tmp_path / "outside")
    assert compared._link(one, {"directory": "link"}, directory) is None


@pytest.mark.parametrize("string", [HOSTILE, *STRANGE])
def test_strangers_strings_stay_strings(tmp_path, string):
    named = re.sub(r"[/\0]|[\ud800-\udfff]", "", string)[:80]
    trained = measured_run(tmp_path / named, string, string)
    summary = json.loads((trained / "summary.json").read_text())
    summary["model"]["identified"][0]["name"] = string
    (trained / "summary.json").write_text(json.dumps(summary))
    other = written_comparison(tmp_path / "comparison", (string, string + "2", "sac"))
    for named_ones in ([trained], [other], [trained, other]):
        page = read(report.write_report(named_ones, tmp_path / "report.html"))
        assert [tag for tag, _ in page.tags].count("script") == 3
        assert "img" not in [tag for tag, _ in page.tags]
        assert "49" not in words_of(page) or "{{7*7}}" in words_of(page)
        assert "\u202e" not in page.text
        drawn = json.dumps(page.charts, ensure_ascii=False)
        assert "<img" not in drawn  # Plotly would read it as HTML
        assert "<script" not in drawn


def test_names_that_look_alike_once_shortened_stay_apart():
    names = ["x" * 50 + end for end in "abc"]
    assert len(set(words.labels(names).values())) == 3
    assert words.labels(["sac", "sac"]) == {"sac": "\u2068sac\u2069"}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "There is no config.json"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b"[" * 100_000, "config.json is damaged"),
        ("config.json", b"\xff\xfe", "config.json is damaged"),
        ("config.json", b'{"settings": 3, "preset": [], "model": {}, "env_id": 7}', "Gymnasium"),
        ("metrics.csv", None, "Nothing has been measured yet"),
        ("metrics.csv", b"\xff\x00\xfe", "metrics.csv is damaged"),
        ("summary.json", None, "Training is still under way or was stopped"),
        ("summary.json", b"[]", "summary.json"),
        ("policy/policy.safetensors", None, "policy/, which is missing"),
        ("policy/policy.safetensors", b"short", "is damaged: its head"),
    ],
)
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_there(tmp_path, file, content, said):
    directory = measured_run(tmp_path / "run", policy=file.startswith("policy") or said[0] == "G")
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(content)
    written = report.write_report([directory])
    assert said in " ".join(written.missing)
    page = read(written)
    assert said in words_of(page)
    if file != "metrics.csv":
        assert "curve" in page.charts["charts"]


def test_a_training_that_still_runs(tmp_path):
    directory = measured_run(tmp_path / "run")
    (directory / "summary.json").unlink()
    lines = (directory / "metrics.csv").read_text().splitlines(keepends=True)
    (directory / "metrics.csv").write_text("".join(lines[:2]))
    page = read(report.write_report([directory]))
    said = words_of(page)
    assert "Not finished: without a single real step the policy has a mean return of −150.5" in said
    assert "There is one evaluation, −150.5" in said
    assert "policy" in page.charts["charts"]


@pytest.mark.parametrize("cell", ["", "nan", "inf", "1e999", "none", "-0", "0x1"])
def test_odd_cells_are_empty_cells(tmp_path, cell):
    directory = measured_run(tmp_path / "run", policy=False)
    path = directory / "metrics.csv"
    header, *rows = path.read_text().splitlines()
    columns = len(header.split(","))
    path.write_text("\n".join([header, *rows, ",".join([cell] * columns)]) + "\n")
    page = read(report.write_report([directory], tmp_path / "report.html"))
    assert "curve" in page.charts["charts"]


def test_comparisons_that_say_little(tmp_path):
    directory = written_comparison(tmp_path / "comparison")
    content = json.loads((directory / "comparison.json").read_text())
    for agent in content["agents"].values():
        agent.update(iqm=None, curve=[], runs={"a": 1}, settings=None, steps_to_threshold=None)
    content.update(optimum=None, threshold="x", improvement=[3, {}], seeds=None, evaluation=None)
    (directory / "comparison.json").write_text(json.dumps(content))
    page = read(report.write_report([directory]))
    assert "No agent has a result." in words_of(page)
    assert page.charts["charts"] == {}


def test_commands_that_are_shown_name_an_environment_of_ones_own(tmp_path):
    directory = measured_run(tmp_path / "run", env_id="Own-v0", policy=False)
    said = words_of(read(report.write_report([directory])))
    assert f"dynasac record {directory} --env MODULE:ID, then" in said
    said = words_of(read(report.write_report([directory], env_id="own:Own-v0")))
    assert f"dynasac record {directory} --env own:Own-v0, then" in said


def test_several_directories_are_one_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = measured_run(Path("a/run")), measured_run(Path("b/run"), policy=False)
    written = report.write_report([one, two, written_comparison(Path("c"))])
    assert written.path == Path("report.html")
    page = read(written)
    assert {"overview-0", "d1-policy", "d2-curve", "d3-curve"} <= set(page.charts["charts"])
    lines = page.charts["charts"]["overview-0"]["data"]
    assert len({line["name"] for line in lines}) == 2  # though both are called "run"


def test_many_maps_do_not_make_a_page_too_large(tmp_path):
    found = [measured_run(tmp_path / f"run-{k}") for k in range(8)]
    written = report.write_report([*found, found[0]], tmp_path / "report.html")
    page = read(written)  # which is light enough
    assert {"d1-policy", "d1-value", "d8-curve"} <= set(page.charts["charts"])
    assert "d8-policy" not in page.charts["charts"]
    assert "d9-curve" not in page.charts["charts"]  # it was named twice
    left_out = [told for told in written.missing if str(found[7]) in told]
    assert left_out == [
        f"There is no room for maps of the policy; dynasac report {found[7]} has them, if its "
        "system has two states."
    ]


def test_the_weight_of_maps_is_about_what_they_add(tmp_path):
    run = measured_run(tmp_path / "run")
    whole = report.write_report([run]).bytes
    one = directories.gather(run)
    assert isinstance(one, directories.RunData)
    plane = phase.phase_map(DynaSAC.load(run / "policy", "Pendulum-v1"))
    assert plane is not None
    told = sum(f("x", plane).weight for f in (figures.policy_map, figures.value_map))
    shutil.rmtree(run / "policy")
    added = whole - report.write_report([run]).bytes
    assert added <= told < 1.3 * added


def test_an_agent_of_stable_baselines3_is_not_described_as_ours(tmp_path):
    directory = measured_run(tmp_path / "run", policy=False)
    asked = {
        "env_id": "Pendulum-v1", "agent": "sb3-sac", "seed": 1, "real_steps": 500,
        "settings": {"algorithm": "SAC", "settings": {"learning_rate": 0.001}},
        "packages": {"stable-baselines3": "2.7"}, "versions": {"jax": "1"},
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(asked))
    page = read(report.write_report([directory]))
    said = words_of(page)
    assert "agent sb3-sac of stable-baselines3, seed 1, trained by `dynasac compare`" in said
    assert "settings.learning-rate" in said
    for wrong in ("dynasac train", "preset", "policy/", "dynasac record"):
        assert wrong not in said
    both = [directory, measured_run(tmp_path / "other")]
    assert "sb3-sac" in words_of(read(report.write_report(both, tmp_path / "report.html")))
    (directory / "summary.json").unlink()
    assert "dynasac train" not in words_of(read(report.write_report([directory])))


def test_an_environment_that_is_named_is_that_of_its_own_runs_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = []

    def load(directory, env_id, model):
        named.append((directory.name, env_id, model))
        raise UsageError("not now")

    monkeypatch.setattr("dynasac.recording.load_run", load)
    found = [measured_run(tmp_path / name) for name in ("one", "own")]
    for change in ({"model": "own.py:Own"}, {"env_id": "Own-v0"}):
        path = found[1] / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        named.clear()
        given = {"env_id": "own:Own-v0"} if "env_id" in change else {}
        report.write_report(found, model="own.py:Own", **given)
        assert named == [("one", None, None), ("own", given.get("env_id"), "own.py:Own")]


def test_a_regret_is_that_of_the_return_beside_it(tmp_path):
    directory = measured_run(tmp_path / "run", policy=False)
    lines = (directory / "metrics.csv").read_text().splitlines()
    lines[-1] = lines[-1].replace("-131.9,6,", "-131.9,,")  # over other episodes than the standard
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    page = read(report.write_report([directory]))
    assert "below the optimum" not in words_of(page)


def test_a_video_that_is_too_large_stays_outside(tmp_path):
    directory = measured_run(tmp_path / "run", policy=False)
    (directory / "video.mp4").write_bytes(bytes(2_000_000))
    page = read(report.write_report([directory]))
    assert "video" not in [tag for tag, _ in page.tags]
    assert "video.mp4 in the run's directory (2.0 MB) is too large" in words_of(page)


def test_directories_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="neither a run nor a comparison"):
        report.write_report([tmp_path])
    with pytest.raises(UsageError, match="at least one"):
        report.write_report([])
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(UsageError, match="tells of no agents"):
        report.write_report([tmp_path])
    written_comparison(tmp_path)
    with pytest.raises(UsageError, match="is a directory"):
        report.write_report([tmp_path], tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UsageError, match=r"pip install 'dynasac\[report\]'"):
        report.write_report([written_comparison(tmp_path)])


def test_the_command_line_that_asks_for_the_same(tmp_path):
    def asked(**content):
        config = {"env_id": "Pendulum-v1", "preset": "default", "model": "auto", "seed": 0}
        return directories.RunData(tmp_path, "run", {**config, **content}, (), {}, ())

    settings = {"real_episodes": 3, "sac": {"entropy_in_target": True, "hidden": [8, 8]}}
    assert run.command(asked(settings=settings, model="my model.py:M")) == (
        "dynasac train Pendulum-v1 --model 'my model.py:M' --real-episodes 3 "
        "--sac.entropy-in-target --sac.hidden 8 8"
    )
    ensemble = asked(settings={"adapt": "ensemble", "real_episodes": 5}, model="ensemble")
    assert run.command(ensemble) == "dynasac train Pendulum-v1 --model ensemble"
    assert run.command(asked(env_id="x; rm -rf /", seed="$(id)")) == (
        "dynasac train 'x; rm -rf /' --seed '$(id)'"
    )
    columns = {"observation": ["x y", "v"], "reward": None, "next_observation": ["x'"]}
    assert run.command(asked(dataset="log.csv", columns=columns)) == (
        "dynasac train Pendulum-v1 --dataset log.csv --columns.observation 'x y' v "
        """--columns.next-observation 'x'"'"''"""
    )
    rows = ({"real_steps": "0", "logged_transitions": "600", "eval_mean_return": "-1"},)
    logged = directories.RunData(tmp_path, "run", {}, rows, {}, ())
    assert "without a single real step, beside 600 logged transitions" in run.headline(logged)
    filled = asked(settings={"sac": {"discount": 0.9925}})
    assert directories.settings(filled.asked).changed == {}  # the preset leaves it open


def test_a_map_is_the_policy_and_its_critics():
    trained = DynaSAC("Pendulum-v1", config=SMALL)
    plane = phase.phase_map(trained)
    assert plane is not None
    assert plane.names == ("angle", "velocity")
    assert plane.bounds == (-2, 2)
    for axis, end in zip(plane.axes, (np.pi, 8), strict=True):
        np.testing.assert_allclose((axis[0], axis[-1]), (-end, end), rtol=1e-3)
    angle, velocity = plane.axes[0][20], plane.axes[1][60]
    observation = np.array([np.cos(angle), np.sin(angle), velocity], np.float32)
    action, _ = trained.predict(observation, deterministic=True)
    assert plane.action[60, 20] == pytest.approx(action[0], abs=1e-4)
    x = trained.spaces.observation.to_unit(jnp.asarray(observation))[None]
    unit = trained.spaces.action.to_unit(jnp.asarray(action))[None]
    q = trained.state.sac.critics(x, unit).min() / trained.config.sac.reward_scale
    assert plane.value[60, 20] == pytest.approx(float(q), rel=1e-3)

    measured = trained.evaluate(len(plane.paths)).returns
    assert [path.total for path in plane.paths] == pytest.approx(measured, rel=1e-4)
    observation, _ = trained.env.reset(seed=plane.paths[0].seed)
    start = plane.paths[0].states[0]
    np.testing.assert_allclose([np.cos(start[0]), np.sin(start[0])], observation[:2], atol=1e-5)
    chart = figures.policy_map("policy", plane)
    for line in chart.data[1:]:
        steps = np.abs(np.diff(np.array(line["x"], float)))
        assert line["mode"] != "lines" or np.nanmax(steps) < np.pi  # none crosses the plot


def test_maps_are_of_systems_with_two_states(rail):
    assert phase.phase_map(rail) is None


def test_states_have_the_names_that_their_author_uses():
    class Listed(dynasac.MountainCar):
        def transition(self, state, action):
            return state

    assert phase.state_names(dynasac.MountainCar) == ("position", "velocity")
    assert phase.state_names(Listed) == ("state 0", "state 1")
    assert phase.state_names(probes.Slide) == ("state 0", "state 1")


def test_axes_reach_as_far_as_observations_or_as_what_was_visited():
    spaces = Spaces(
        observation=Box(-2 * jnp.ones(2), 2 * jnp.ones(2)),
        action=Box(-jnp.ones(1), jnp.ones(1)),
        bounded=(True, False),
        episode_steps=10,
    )
    visited = np.array([[0.0, 10.0], [0.5, 20.0]])
    low, high = phase.ranges(dynasac.MountainCar(), spaces, visited)
    np.testing.assert_allclose(low, [-2, 8.5])
    np.testing.assert_allclose(high, [2, 21.5])


def test_lines_break_where_angles_wrap():
    axes = (np.linspace(-np.pi, np.pi, 9), np.linspace(-8, 8, 9))
    path = np.array([[3.0, 1], [3.1, 1], [-3.1, 1], [-3.0, 1]])
    broken = phase.unbroken(path, axes)
    np.testing.assert_array_equal(np.isnan(broken).all(1), [False, False, True, False, False])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme):
    sheet = (resources.files("dynasac.report") / "style.css").read_text()
    light, dark = re.findall(r"\{[^{}]*--page:[^{}]*\}", sheet)
    found = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))

    def luminance(name):
        channels = np.array([int(found[name][k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(one, other):
        lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    for ink in ("--ink", "--muted", "--accent"):
        for ground in ("--page", "--surface"):
            assert contrast(ink, ground) >= 4.5
    assert contrast("--ink", "--notice") >= 4.5
    assert contrast("--ink", "--code") >= 4.5
    for k in range(1, figures.SERIES + 1):
        assert contrast(f"--series-{k}", "--surface") >= 4.5
