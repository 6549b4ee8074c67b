"""Videos: what players need, what is in them, and no display."""

import os
import re
import subprocess
import sys

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import probes
import pytest
from conftest import SMALL, untrained_run
from PIL import Image, ImageSequence
from test_cli import SLIDE

from dynasac import DynaSAC, UsageError, cli, evaluation, video


class Painted(probes.Rail):
    """A Rail that draws itself: all of the picture is as bright as time."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012  (Gymnasium's)
    shape = (33, 21, 3)

    def __init__(self, render_mode=None):
        self.render_mode, self.drawn = render_mode, 0

    def render(self):
        self.drawn += 1
        return np.full(self.shape, 12 * self.drawn, np.uint8)


class Growing(Painted):
    def render(self):
        return np.zeros((20 + 2 * self.time, 20, 3), np.uint8)

    def step(self, action):
        self.time += 1
        return super().step(0 * action)


class Grey(Painted):
    shape = (33, 21)


for _kind in (Painted, Growing, Grey):
    gym.register(f"{_kind.__name__}-v0", entry_point=_kind, max_episode_steps=10)


def still(env_id: str) -> DynaSAC:
    """An untrained agent, whose actions are near 0."""
    return DynaSAC(env_id, probes.Slide(), SMALL)


def read(path) -> tuple[str, np.ndarray]:
    """What a player sees: a line about the stream, and frames [frames, height, width, 3]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo"]
    shown = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    about = next(line for line in shown.stderr.decode().splitlines() if "Video:" in line)
    width, height = map(int, re.findall(r", (\d+)x(\d+)", about)[0])
    return about, np.frombuffer(shown.stdout, np.uint8).reshape(-1, height, width, 3)


def gif_seconds(gif) -> float:
    return sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif)) / 1000


def test_every_step_is_a_frame_that_browsers_play(tmp_path):
    told = []
    agent = still("Painted-v0")
    made = video.record(agent, tmp_path / "my.run", episodes=2, first_seed=7, tell=told.append)
    assert made.mp4 == tmp_path / "my.run.mp4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.run.gif", "my.run.mp4"]
    assert made.returns == pytest.approx(agent.evaluate(2, first_seed=7).returns)
    assert (len(told), "episode 2 of 2" in told[1]) == (2, True)

    about, frames = read(made.mp4)
    assert "h264" in about
    assert "yuv420p" in about
    assert " 12 fps" in about
    assert frames.shape[1:] == (34, 22, 3)  # odd sides are made even
    assert len(frames) == made.frames == round(made.seconds * 12)
    brightness = frames.mean(axis=(1, 2, 3))
    expected = 12 * np.arange(1, len(frames) + 1)
    np.testing.assert_allclose(brightness, expected, atol=4)
    content = made.mp4.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")

    with Image.open(made.gif) as gif:
        assert (gif.format, gif.size, gif.info["loop"]) == ("GIF", (22, 34), 0)
        assert gif.n_frames > made.frames / 3  # those that look the same are one
        assert gif_seconds(gif) == pytest.approx(made.seconds, rel=0.05)


def test_pygame_draws_without_a_display(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    made = video.record(DynaSAC("Pendulum-v1", config=SMALL), tmp_path / "video", episodes=1)
    assert "SDL_VIDEODRIVER" not in os.environ
    about, frames = read(made.mp4)
    assert " 30 fps" in about
    assert frames.shape == (200, 500, 500, 3)
    assert made.drawn
    moved = np.abs(frames[0].astype(int) - frames[20]).max()
    assert moved > 100
    with Image.open(made.gif) as gif:
        assert gif.size == (320, 320)
        assert gif_seconds(gif) == pytest.approx(made.seconds, rel=0.2)  # counted in 1/100 s
    assert made.gif.stat().st_size < 1.5e6


def test_an_environment_that_does_not_draw_itself_is_shown_as_traces(tmp_path):
    made = video.record(still("Rail-v0"), tmp_path / "video", episodes=1)
    assert not made.drawn
    about, frames = read(made.mp4)
    assert f" {video.FPS:.0f} fps" in about
    assert len(frames) == made.frames
    assert frames.std() > 5


def test_traces_grow_by_a_step_a_frame():
    steps = [
        evaluation.Step(np.array([k, -k], np.float32), np.array([0.5]), -1.0, np.zeros(2))
        for k in range(12)
    ]
    frames = np.stack(list(video.traces(steps, "an $unfinished title")))
    assert len(frames) == 12
    last = frames[-1].astype(int)
    uncovered = [int((np.abs(frame - last).max(-1) > 0).any(0).sum()) for frame in frames]
    assert uncovered == sorted(uncovered, reverse=True)
    assert uncovered[0] > uncovered[-1] == 0


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("Growing-v0", "change size"), ("Grey-v0", r"draws uint8\[33, 21\]")],
)
def test_pictures_that_are_none(tmp_path, env_id, message):
    with pytest.raises(UsageError, match=message):
        video.record(still(env_id), tmp_path / "video", episodes=1)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UsageError, match=r"imageio_ffmpeg: pip install 'dynasac\[report\]'"):
        video.record(still("Rail-v0"), tmp_path / "video")


def test_without_what_the_environment_draws_with(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    agent = DynaSAC("Pendulum-v1", config=SMALL)
    with pytest.raises(UsageError, match=r"^Pendulum-v1 .*: pip install 'dynasac\[classic-control"):
        video.record(agent, tmp_path / "video", episodes=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("works", "chosen"), [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa")])
def test_mujoco_draws_with_what_there_is(monkeypatch, works, chosen):
    asked = []

    def run(command, env, **_):
        asked.append(env["MUJOCO_GL"])
        return subprocess.CompletedProcess(command, 0 if env["MUJOCO_GL"] in works else 1)

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    env = gym.make("InvertedPendulum-v5")
    with video._without_display(env):
        assert os.environ["MUJOCO_GL"] == chosen
    assert "MUJOCO_GL" not in os.environ
    assert asked == ["egl", "osmesa"][: len(asked)]

    works = ()
    with pytest.raises(UsageError, match="apt install"), video._without_display(env):
        pass
    monkeypatch.setenv("MUJOCO_GL", "glfw")  # what the user says is done
    with video._without_display(env):
        assert os.environ["MUJOCO_GL"] == "glfw"
    env.close()


def test_lookahead_is_asked_of_the_agent(tmp_path, monkeypatch):
    agent, asked = still("Rail-v0"), []

    def predict(observation, deterministic, lookahead):
        asked.append((deterministic, lookahead))
        return np.zeros((len(observation), 1), np.float32), None

    monkeypatch.setattr(agent, "predict", predict)
    video.record(agent, tmp_path / "video", episodes=1, lookahead=1)
    assert set(asked) == {(True, 1)}


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    untrained_run(tmp_path / "run", still("Rail-v0"), SLIDE.removeprefix("--model="))
    assert cli.run(["record", "run", "--episodes=2"]) == 0
    said = capsys.readouterr().out
    assert "wrote run/video.mp4" in said
    assert "traces of its numbers" in said
    assert {"video.mp4", "video.gif"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert cli.run(["record", "run", "--episodes=1", SLIDE, "--output=deep/my.gif"]) == 0
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["my.gif", "my.mp4"]
    for folder in (".", "..", "deep"):
        with pytest.raises(UsageError, match="is a directory: name a file in it"):
            cli.run(["record", "run", f"--output={folder}"])
    with pytest.raises(UsageError, match="--episodes: at least 1"):
        cli.run(["record", "run", "--episodes=0"])
    with pytest.raises(UsageError, match="--seed: at least 0"):
        cli.run(["record", "run", "--seed=-1"])
    with pytest.raises(UsageError, match="not a run directory"):
        cli.run(["record", "nowhere"])
