"""A video of the trained policy, made without a display: H.264 for browsers, and a small GIF."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from . import checkpoint, evaluation
from .agent import DynaSAC
from .errors import UsageError, one_line

FPS = 30.0
"""frames a second where an environment does not say"""
GIF_SIDE, GIF_FPS, GIF_SECONDS = 320, 25.0, 20.0
"""the longer side in pixels, frames a second, and how much of the beginning a GIF shows"""
GIF_COLOURS = 128
TRACE_INCHES, TRACE_DPI = (6.4, 5.6), 100
TRACE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, which colour-blind people can tell apart"""
LEGEND_UP_TO = 6
"""components; more of them are not named in the picture"""


class Recording(NamedTuple):
    """What `record` wrote."""

    mp4: Path
    gif: Path
    returns: tuple[float, ...]
    """of each episode"""
    frames: int
    fps: float
    drawn: bool
    """whether the environment drew itself; traces were drawn otherwise"""

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def record(
    agent: DynaSAC,
    stem: Path,
    episodes: int = 3,
    first_seed: int = evaluation.FIRST_SEED,
    lookahead: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Recording:
    """Run the deterministic policy and write `stem`.mp4 and `stem`.gif.

    An environment that cannot draw itself is shown as traces of observation, action and reward.

    Arguments:
        stem: the files' path without an ending.
        first_seed: episode k starts from `reset(seed=first_seed + k)`.
        lookahead: as in `DynaSAC.predict`.
        tell: is called with a line after each episode.

    Raises:
        UsageError: a package is missing, or the environment cannot be made or drawn.
    """
    _needed()
    spec = agent.env.spec
    if spec is None:
        raise UsageError("a video needs an environment made by gymnasium.make")
    drawn = "rgb_array" in (agent.env.metadata.get("render_modes") or ())
    fps = float(agent.env.metadata.get("render_fps") or FPS)
    returns: list[float] = []

    def policy(observations: np.ndarray) -> np.ndarray:
        return agent.predict(observations, deterministic=True, lookahead=lookahead)[0]

    def frames(env: gym.Env) -> Iterator[np.ndarray]:
        for k in range(episodes):
            steps = evaluation.episode(policy, env, agent.spaces.episode_steps, first_seed + k)
            told = _Told(steps)
            if drawn:
                for _ in told:
                    yield _frame(env.render(), agent.env_id)
            else:
                title = f"{agent.env_id}, episode from seed {first_seed + k}"
                yield from traces(list(told), title)
            returns.append(told.total)
            tell(f"episode {k + 1} of {episodes}: return {told.total:.1f} in {told.count} steps")

    how: dict[str, Any] = {"render_mode": "rgb_array"} if drawn else {}
    with _without_display(agent.env if drawn else None):
        try:
            env = gym.make(spec, disable_env_checker=True, **how)
        except Exception as error:  # the constructor is somebody else's code
            raise UsageError(
                f"{agent.env_id} cannot be made for drawing: {one_line(error)}"
            ) from None
        with contextlib.closing(env):
            try:
                mp4, gif, count = encoded(frames(env), fps)
            except gym.error.DependencyNotInstalled as error:  # found out at the first picture
                raise evaluation.not_installed(agent.env_id, error) from None
    made = Recording(
        stem.with_name(f"{stem.name}.mp4"),
        stem.with_name(f"{stem.name}.gif"),
        tuple(returns),
        count,
        fps,
        drawn,
    )
    try:
        checkpoint.write_bytes(made.mp4, mp4)
        checkpoint.write_bytes(made.gif, gif)
    except OSError as error:
        raise UsageError(f"cannot write to {stem.parent}: {error.strerror}") from None
    return made


def encoded(frames: Iterator[np.ndarray], fps: float) -> tuple[bytes, bytes, int]:
    """MP4 and GIF of frames [height, width, 3], uint8, and how many frames there were.

    The MP4 is H.264 in yuv420p with even sides and its index first, which every browser plays.

    Raises:
        UsageError: there are no frames, or they are not all of one size.
    """
    every = max(1, round(fps / GIF_FPS))
    small: list[np.ndarray] = []
    shape, count = None, 0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "video.mp4"
        write = None
        for frame in frames:
            frame = np.pad(frame, [(0, n % 2) for n in frame.shape[:2]] + [(0, 0)], mode="edge")
            if write is None:
                shape = frame.shape
                write = stack.enter_context(_ffmpeg(path, shape[1], shape[0], fps))
            if frame.shape != shape:
                raise UsageError(f"the environment's pictures change size: {shape}, {frame.shape}")
            write(np.ascontiguousarray(frame).data)
            if count % every == 0 and count < GIF_SECONDS * fps:
                small.append(_scaled(frame))
            count += 1
        stack.close()
        if not count:
            raise UsageError("there is nothing to show: no step was made")
        return path.read_bytes(), _gif(small, every / fps), count


@contextlib.contextmanager
def _ffmpeg(path: Path, width: int, height: int, fps: float) -> Iterator[Callable[[Any], Any]]:
    """What takes the frames of a video, as bytes of RGB."""
    import imageio_ffmpeg

    shown = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}"]
    kept = ["-an", "-c:v", "libx264", "-preset", "medium", "-crf", "23", "-pix_fmt", "yuv420p"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *shown, "-i", "-", *kept]
    said = path.with_suffix(".log")
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*command, "-movflags", "+faststart", str(path)], stdin=subprocess.PIPE, stderr=log
        )
    assert process.stdin is not None  # it is a pipe
    try:
        yield process.stdin.write
        process.stdin.close()
        code = process.wait()
    except BrokenPipeError:  # what ffmpeg says of it is in the log
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    if code:
        raise UsageError(f"ffmpeg failed: {said.read_text(errors='replace').strip()[-200:]}")


def traces(steps: list[evaluation.Step], title: str) -> Iterator[np.ndarray]:
    """Observation, action and reward of an episode over time, growing by a step a frame.

    The picture is drawn twice, with curves and without; each frame uncovers a little more.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not steps:
        return
    time = np.arange(len(steps))
    rows = {
        "observation": np.stack([step.observation for step in steps]),
        "action": np.stack([step.action for step in steps]),
        "reward": np.array([[step.reward] for step in steps]),
    }
    figure = Figure(TRACE_INCHES, dpi=TRACE_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False, fontsize=11)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    curves = []
    for axes, (name, values) in zip(panels, rows.items(), strict=True):
        count = values.shape[1]
        for k in range(count):
            label = name if count == 1 else f"{name}[{k}]"
            colour = TRACE_COLOURS[k % len(TRACE_COLOURS)]
            # the last value is held, so that one step can be seen too
            curves += axes.plot(
                np.append(time, len(time)), np.append(values[:, k], values[-1, k]),
                color=colour, label=label, drawstyle="steps-post" if name == "action" else None,
            )  # fmt: skip
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if 1 < count <= LEGEND_UP_TO:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    panels[-1].set(xlabel="step", xlim=(0, len(time)))

    def drawn() -> np.ndarray:
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    full = drawn()
    figure.set_layout_engine("none")
    for curve in curves:
        curve.set_visible(False)
    empty = drawn()
    at = panels[0].transData.transform(np.stack([time + 1, np.zeros(len(time))], axis=1))[:, 0]
    spans = [panel.get_window_extent() for panel in panels]
    for column in at.round().astype(int):
        frame = empty.copy()
        frame[:, :column] = full[:, :column]
        for span in spans:
            top, bottom = (len(frame) - round(y) for y in (span.y1, span.y0))
            frame[top:bottom, column - 1 : column + 1] = (120, 120, 120)
        yield frame


class _Told:
    """Steps handed on, counted and their rewards added up."""

    def __init__(self, steps: Iterator[evaluation.Step]):
        self._steps = steps
        self.total, self.count = 0.0, 0

    def __iter__(self) -> Iterator[evaluation.Step]:
        for step in self._steps:
            self.total += step.reward
            self.count += 1
            yield step


def _frame(picture: Any, env_id: str) -> np.ndarray:
    frame = np.asarray(picture)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise UsageError(
            f"{env_id} draws {frame.dtype}{list(frame.shape)} as its rgb_array, not "
            "uint8[height, width, 3]"
        )
    return frame


def _scaled(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((GIF_SIDE, GIF_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _gif(frames: list[np.ndarray], seconds: float) -> bytes:
    """One palette for all, without dithering: what does not move is then stored once.

    Of the methods of Pillow this one leaves a plain background as it is.
    """
    from PIL import Image

    some = np.concatenate(frames[:: max(1, len(frames) // 8)])
    palette = Image.fromarray(some).quantize(
        GIF_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    content = io.BytesIO()
    pictures[0].save(
        content,
        "gif",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(1000 * seconds)),  # ms; browsers slow down what is faster
        loop=0,
        optimize=True,
    )
    return content.getvalue()


def _needed() -> None:
    try:
        import imageio_ffmpeg  # noqa: F401
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"videos need the package {error.name}: pip install 'dynasac[report]'"
        ) from None


@contextlib.contextmanager
def _without_display(env: gym.Env | None) -> Iterator[None]:
    """Let pygame and MuJoCo draw into memory while this lasts.

    Raises:
        UsageError: MuJoCo has no way to draw.
    """
    wanted = {"SDL_VIDEODRIVER": "dummy"}
    if env is not None and _is_mujoco(env) and "MUJOCO_GL" not in os.environ and _headless():
        wanted["MUJOCO_GL"] = _mujoco_backend()
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_mujoco(env: gym.Env) -> bool:
    return hasattr(env.unwrapped, "mujoco_renderer")


def _headless() -> bool:
    shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform == "linux" and not shown


def _mujoco_backend() -> str:
    """What MuJoCo can draw with; tried in processes of their own, since a failure spoils one."""
    for name in ("egl", "osmesa"):
        code = f"from mujoco.{name} import GLContext; c = GLContext(8, 8); c.make_current()"
        environment = {**os.environ, "MUJOCO_GL": name}
        tried = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=False
        )
        if tried.returncode == 0:
            return name
    raise UsageError(
        "MuJoCo cannot draw without a display here: install EGL or OSMesa (on Debian: apt install "
        "libegl1 libgl1-mesa-dri, or libosmesa6), or set MUJOCO_GL"
    )
