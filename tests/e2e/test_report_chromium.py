"""The report in a real browser: nothing is fetched or run, nothing overflows, and all text can be read, light or dark.

The browser prints what a script of the test's own has measured, in a copy of the page from which the policy against
scripts was taken; what that policy is worth is a test of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from polverify.report import render
from tests.unit import sample_verdicts

if TYPE_CHECKING:
    from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
LIGHT, DARK = 1, 0  # of Chromium's setting
LEAST_CONTRAST = 4.5  # WCAG 2.2, AA, text of any size

MEASURE = """<script>
function channels(color) { return color.match(/[0-9.]+/g).map(Number); }
function luminance(color) {
  const [r, g, b] = channels(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor, parts = channels(color);
    if (parts.length < 4 || parts[3] > 0) return color;
  }
}
const contrasts = [];
for (const element of document.body.querySelectorAll("*")) {
  const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
  if (!texts.length || element.namespaceURI.endsWith("svg")) continue;
  const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
  contrasts.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName + "." + element.className]);
}
contrasts.sort((one, other) => one[0] - other[0]);
const wide = [...document.querySelectorAll("main *")].filter(element => !element.closest(".scroll,svg")
  && element.getBoundingClientRect().right > innerWidth + 0.5)
  .map(element => element.tagName + "." + element.className);
document.documentElement.innerHTML = "<pre id=measured>" + JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth, wide,
  background: getComputedStyle(document.body).backgroundColor, contrast: contrasts[0],
  drawings: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect())
    .filter(box => box.height).map(box => [box.width, box.height]),
}).replace(/</g, "") + "</pre>";
</script>"""


def browse(page: Path, *options: str, what: str = "--dump-dom") -> str:
    """Open a page; return what it became, and what the browser wrote to its console."""
    command = [
        str(BROWSER),
        *("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--log-level=0"),
        f"--user-data-dir={page.parent / 'profile'}",
        *options,
        what,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("accepted", 360, LIGHT), ("accepted", 1600, DARK)]
    + [(name, *window) for name in sample_verdicts.ALL for window in ((360, DARK), (1600, LIGHT))],
)
def test_nothing_overflows_and_everything_can_be_read(tmp_path, name, width, scheme):
    page = tmp_path / "page.html"
    page.write_text(POLICY.sub("", render(sample_verdicts.ALL[name]())).replace("</body>", MEASURE + "</body>"))
    dom = browse(page, f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}")
    measured: dict[str, Any] = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', dom)[1].replace("&amp;", "&"))
    assert measured["inner"] == width
    assert measured["scroll"] <= width
    assert measured["wide"] == []
    assert measured["background"] == ("rgb(255, 255, 255)" if scheme == LIGHT else "rgb(15, 19, 24)")
    assert measured["contrast"][0] >= LEAST_CONTRAST, measured["contrast"]
    assert all(wide >= 0.7 * min(width, 1200) and high >= 30 for wide, high in measured["drawings"])
    assert len(measured["drawings"]) == (0 if name == "rejected" else 3)  # of the four distances, one is shown


def test_the_page_itself_runs_and_fetches_nothing(tmp_path):
    """With hostile text in every place, and then with a script and an image that got through all the same."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        hostile = render(sample_verdicts.hostile())
        page = tmp_path / "page.html"
        page.write_text(hostile)
        dom = browse(page)
        assert "CONSOLE" not in dom
        assert "<script" not in dom
        attack = f"<script>document.title='ran'</script><script src='{address}/script'></script>"
        attack += f"<img src='{address}/image'>"
        attack += f"<style>body {{ background: url('{address}/style') }}</style><iframe src='{address}/frame'></iframe>"
        page.write_text(hostile.replace("</body>", attack + "</body>"))
        dom = browse(page)
        assert "<title>ran" not in dom
        assert "violates the following Content Security Policy" in dom
        assert asked == []
        page.write_text(POLICY.sub("", hostile).replace("</body>", attack + "</body>"))
        assert "<title>ran" in browse(page)  # so the test would see it
        assert {"/image", "/script", "/style", "/frame"} <= set(asked)
        server.shutdown()


def test_screenshots_differ_by_scheme_and_are_not_blank(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render(sample_verdicts.accepted()))
    shots = []
    for scheme in (LIGHT, DARK):
        shot = tmp_path / f"{scheme}.png"
        options = ("--window-size=800,1200", f"--blink-settings=preferredColorScheme={scheme}")
        browse(page, *options, what=f"--screenshot={shot}")
        shots.append(shot.read_bytes())
    assert shots[0] != shots[1]
    assert all(len(shot) > 20_000 for shot in shots)  # a blank page of this size takes 5 KB
