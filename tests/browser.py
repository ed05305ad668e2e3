"""A page in a real browser: headless Chromium, skipped where there is none."""

import html
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

DARK = "--blink-settings=preferredColorScheme=0"


def chromium(*options: str, page: Path, scratch: Path) -> str:
    """Open a page and return what Chromium prints; a request to any host fails at once."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    fixed = [
        *["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"],
        *["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"],
        f"--user-data-dir={scratch / 'chromium'}",
    ]
    done = subprocess.run(
        [program, *fixed, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(page: Path, width: int, height: int, scratch: Path, *options: str) -> Path:
    """A picture of a window of this size; a narrow one through a frame, as Chromium's windows are 500 px at least."""
    picture = scratch / f"{page.stem}-{width}{'-dark' if DARK in options else ''}.png"
    shown = page if width >= 500 else _framed([page], (width,), height, scratch, "")
    chromium(f"--screenshot={picture}", f"--window-size={width},{height}", *options, page=shown, scratch=scratch)
    return picture


def ask(page: Path, scratch: Path, expression: str, *widths: int) -> list[str]:
    """The values of a JavaScript expression over `document`, of a page shown in frames of these widths (or 800)."""
    return ask_all([page], scratch, expression, *widths)


def ask_all(pages: Sequence[Path], scratch: Path, expression: str, *widths: int) -> list[str]:
    """`ask` of several pages in one start of the browser: the values of the first in all widths, of the second, ..."""
    shown = _framed(pages, widths or (800,), 800, scratch, expression)
    printed = chromium("--dump-dom", page=shown, scratch=scratch)
    found = re.findall(r"<output[^>]*>(.*?)</output>", printed, re.DOTALL)
    assert len(found) == len(pages) * len(widths or (800,)), "the page's script did not run"
    return [html.unescape(one) for one in found]


def _framed(pages: Sequence[Path], widths: tuple[int, ...], height: int, scratch: Path, expression: str) -> Path:
    frames = "".join(
        f"""<iframe src="{page.as_uri()}" style="width:{width}px;height:{height}px;border:0"
        onload="tell(this)"></iframe><output hidden></output>"""
        for page in pages
        for width in widths
    )
    script = f"""const ask = document => {expression or "''"};
    const tell = frame => frame.nextElementSibling.append(String(ask(frame.contentDocument)));"""
    frame = scratch / "frame.html"
    frame.write_text(f'<!doctype html><body style="margin:0"><script>{script}</script>{frames}')
    return frame
