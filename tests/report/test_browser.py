"""The page in a real browser: it fits the window, its script runs, light and dark differ."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tightrope.report import html
from tightrope.report.model import Report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")

PROBE = """<script>
const seen = {};
const clip = document.documentElement;
seen.overflow = clip.scrollWidth - clip.clientWidth;
const head = [...document.querySelectorAll("thead button")].find((b) => b.textContent === "std measured");
head.click(); head.click();
seen.sorted = [...document.querySelectorAll("tbody tr")].map((r) => +r.cells[4].dataset.v).filter((v) => !isNaN(v));
const wire = document.querySelector("svg.wide");
const view = () => wire.querySelector("svg.plot").getAttribute("viewBox").split(" ").map(Number);
seen.whole = view();
document.querySelector("[data-zoom='0.5']").click();
seen.zoomed = view();
document.querySelector("[data-zoom='0']").click();
seen.back = view();
const box = wire.getBoundingClientRect();
wire.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 0.5 * box.width, clientY: box.top + 99 }));
seen.tip = document.querySelector(".tip").hidden ? "" : document.querySelector(".tip").textContent;
document.title = JSON.stringify(seen);
</script>"""


def browse(page: Path, *flags: str, home: Path) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={home}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def shot(page: Path, picture: Path, *flags: str, home: Path) -> bytes:
    browse(page, f"--screenshot={picture}", "--window-size=1280,2000", "--hide-scrollbars", *flags, home=home)
    return picture.read_bytes()


def test_script_sorts_zooms_and_tells(sick: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(sick).replace("</body>", PROBE + "</body>"), "utf-8")
    dom = browse(page, "--dump-dom", "--window-size=1280,2000", home=tmp_path / "home")
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None
    seen = json.loads(title[1].replace("&amp;", "&"))
    assert seen["overflow"] == 0
    assert seen["sorted"] == sorted(seen["sorted"], reverse=True)
    assert seen["zoomed"][2] == pytest.approx(seen["whole"][2] / 2)
    assert seen["back"] == pytest.approx(seen["whole"])
    assert "std measured" in seen["tip"]


def test_page_fits_a_phone(made: SimpleNamespace, tmp_path: Path) -> None:
    finding = made.finding(module="encoder.layers.0.self_attention.output_projection", summary="a" * 200)
    page = tmp_path / "report.html"
    page.write_text(html.render(made.report(finding)), "utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" style="width:400px;height:900px;border:0" srcdoc="{_quoted(page)}"></iframe><script>'
        "f.onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = 'over ' + (d.scrollWidth - d.clientWidth) }</script>",
        "utf-8",
    )
    dom = browse(frame, "--dump-dom", "--window-size=800,1000", home=tmp_path / "home")
    assert "<title>over 0</title>" in dom


def test_light_and_dark_are_painted(sick: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(sick), "utf-8")
    light = shot(page, tmp_path / "light.png", home=tmp_path / "one")
    dark = shot(page, tmp_path / "dark.png", "--blink-settings=preferredColorScheme=0", home=tmp_path / "two")
    assert light.startswith(b"\x89PNG")
    assert int.from_bytes(light[16:20]) == 1280
    assert len(light) > 60_000  # an empty page compresses to a tenth of that
    assert light != dark


def _quoted(page: Path) -> str:
    return page.read_text("utf-8").replace("&", "&amp;").replace('"', "&quot;")
