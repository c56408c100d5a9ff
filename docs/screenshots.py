"""Makes the pictures in docs/images from the demo's report: run it after a change of what a user sees.

python docs/screenshots.py    needs chromium, and scikit-learn for the demo's data
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from tightrope.demo import trial
from tightrope.report.html import render
from tightrope.report.model import Report
from tightrope.report.terminal import Screen

IMAGES = Path(__file__).parent / "images"
WINDOWS = {"report": (1280, 1720, ()), "report-dark": (1280, 1720, ("--blink-settings=preferredColorScheme=0",))}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
COLUMNS = 110
INK, PAPER = (228, 230, 231), (24, 28, 31)
RED, GREEN, AMBER, BLUE = (244, 112, 103), (108, 196, 147), (217, 165, 63), (99, 184, 222)
THEME = TerminalTheme(PAPER, INK, [PAPER, RED, GREEN, AMBER, BLUE, (227, 154, 95), BLUE, INK])


def main() -> None:
    """Write report.png, report-dark.png and terminal.svg."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("draw the report: no chromium was found. Install it and run this again.")
    IMAGES.mkdir(exist_ok=True)
    report = replace(trial(fix=False, say=print, out=io.StringIO()).report, command="tightrope run sick.py")
    terminal(report)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(render(report), "utf-8")
        for name, (width, height, extra) in WINDOWS.items():
            command = [browser, *FLAGS, *extra, f"--user-data-dir={folder}/{name}", "--hide-scrollbars"]
            command += [f"--window-size={width},{height}", f"--screenshot={IMAGES / f'{name}.png'}", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)


def terminal(report: Report) -> None:
    """The terminal's screen as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(Screen(report, saved="tightrope-report.html"))
    text = console.export_svg(title="tightrope run sick.py", theme=THEME, unique_id="tightrope")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)  # no font is fetched: the reader's own will do
    (IMAGES / "terminal.svg").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
