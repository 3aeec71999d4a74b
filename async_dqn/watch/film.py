"""Where pictures go: a GIF, an MP4, or a window."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from async_dqn.config.config import UserError
from async_dqn.config.fields import show

Show = Callable[[NDArray[np.uint8]], None]  # one picture [H, W, 3]
KINDS = (".gif", ".mp4")
GIF_TICK_MS = 10  # of a GIF; browsers show what is shorter than two of them slowly


def check_file(path: Path) -> None:
    """Raise UserError where no film can be written there, or a package is missing."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"--out must end in .gif or .mp4 (got {show(str(path))})")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent} is not a folder; make it, or choose another --out")
    if path.suffix.lower() == ".mp4":
        _imageio()


@contextmanager
def film(path: Path, fps: int) -> Iterator[Show]:
    """A file of the pictures shown, there as a whole or not at all; raises UserError."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    writer = _Gif(unfinished, fps) if path.suffix.lower() == ".gif" else _mp4(unfinished, fps)
    try:
        yield writer.append_data
        writer.close()
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


class _Gif:
    """Collects pictures with one exact palette, as long as 256 colours do for all of them.

    Then only what changes from picture to picture is stored. Those with further colours get an
    approximate palette of their own.
    """

    def __init__(self, path: Path, fps: int):
        self._path, self._fps = path, fps
        self._colours: dict[int, int] = {}  # 0xRRGGBB: its number
        self._pictures: list[Image.Image] = []

    def append_data(self, picture: NDArray[np.uint8]) -> None:
        """One more."""
        red, green, blue = np.moveaxis(picture.astype(np.uint32), 2, 0)
        found, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        further = [colour for colour in found.tolist() if colour not in self._colours]
        if len(self._colours) + len(further) > 256:
            image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
        else:
            for colour in further:
                self._colours[colour] = len(self._colours)
            numbers = np.array([self._colours[colour] for colour in found.tolist()], np.uint8)
            image = Image.fromarray(numbers[places].reshape(picture.shape[:2]), mode="P")
            image.info["exact"] = True
        self._pictures.append(image)

    def close(self) -> None:
        """Write the file, once."""
        pictures, self._pictures = self._pictures, []
        if not pictures:
            return
        palette = [part for colour in self._colours for part in colour.to_bytes(3, "big")]
        for picture in pictures:
            if picture.info.pop("exact", False):
                picture.putpalette(palette)
        ticks = max(2, round(100 / self._fps))
        options = {"duration": GIF_TICK_MS * ticks, "loop": 0, "optimize": False}
        options |= {"save_all": True, "append_images": pictures[1:]}
        pictures[0].save(self._path, "GIF", **options)


def _mp4(path: Path, fps: int):
    # Two threads do; each picture is as high and wide as it comes.
    options = {"codec": "libx264", "macro_block_size": 2, "output_params": ["-threads", "2"]}
    return _imageio().get_writer(path, format="FFMPEG", mode="I", fps=fps, **options)


def _imageio():
    try:
        import imageio
        import imageio_ffmpeg  # noqa: F401 (what imageio asks for)
    except ImportError:
        raise UserError(
            "MP4 needs imageio-ffmpeg; pip install -c constraints.txt -e '.[video]', or choose .gif"
        ) from None
    return imageio


@contextmanager
def window(title: str, fps: int) -> Iterator[Show]:
    """A window that shows pictures as fast; raises UserError without a display, KeyboardInterrupt
    where it is closed."""
    if not _has_display():
        raise UserError("there is no display for a window; add --out FILE.gif")
    try:
        import pygame
    except ImportError:
        raise UserError(
            "a window needs pygame; pip install -c constraints.txt -e '.[video]', or add --out FILE"
        ) from None
    pygame.display.init()
    screen, due = None, time.monotonic()

    def show_one(picture: NDArray[np.uint8]) -> None:
        nonlocal screen, due
        if screen is None:
            pygame.display.set_caption(title)
            screen = pygame.display.set_mode((picture.shape[1], picture.shape[0]))
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            raise KeyboardInterrupt
        screen.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        due = max(due + 1 / fps, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))

    try:
        yield show_one
    finally:
        pygame.display.quit()


def _has_display() -> bool:
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    return named or sys.platform != "linux"


def prepare_drawing() -> None:
    """Let what draws through SDL, as many environments do, be quiet, and do without a display."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not _has_display():
        os.environ["SDL_VIDEODRIVER"] = "dummy"
