#!/usr/bin/env python3
"""Opens pages in headless Chromium: nothing may stick out at any width, in either theme; every text is legible on its ground.

Exits with 77, which ctest counts as skipped, where there is no Chromium. REPORT_RENDER draws the pages. With
REPORT_SCREENSHOTS=DIR, writes report-desktop.png, report-phone.png and their dark variants there, of the documents that
REPORT_DOCUMENTS names (paths, separated by spaces; else two of the samples).
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

RENDER = os.environ.get("REPORT_RENDER", "build/bin/report_render")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FOLDER = Path(__file__).parent / "samples"
ORDER = ["advice", "bench", "timeline_none", "timeline_per_block", "breakdown", "segments", "depths", "limits", "pareto", "max_batch"]
SAMPLES = [FOLDER / f"sample_{name}.json" for name in ORDER]
WIDTHS = (1280, 800, 360)

# What the page says of itself, put into an element that --dump-dom shows.
PROBE = r"""
const luminance = c => { const [r, g, b] = c.match(/[\d.]+/g).slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b };
const paper = luminance(getComputedStyle(document.body).backgroundColor), contrast = l => (Math.max(l, paper) + .05) / (Math.min(l, paper) + .05);
const seen = [...document.querySelectorAll("main *")].filter(e => e.checkVisibility());
const wide = seen.filter(e => !e.closest("thead") && (b => b.right > innerWidth + .5 || b.left < -.5)(e.getBoundingClientRect()) && !e.closest("defs"));
const faint = seen.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => [contrast(luminance(
  getComputedStyle(e)[e instanceof SVGElement ? "fill" : "color"])), e.textContent.slice(0, 40)]).filter(([c]) => c < 4.5);
const texts = [...document.querySelectorAll("svg text")].filter(e => e.checkVisibility()), overlaps = [];
for (const svg of new Set(texts.map(e => e.ownerSVGElement))) {
  const boxes = [...svg.querySelectorAll("text")].map(e => [e.getBoundingClientRect(), e.textContent]);
  boxes.forEach(([a, s], i) => boxes.slice(0, i).forEach(([b, t]) => {
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left), h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (w > 1 && h > 4) overlaps.push([svg.id, s, t]);
  }));
}
parent.postMessage(JSON.stringify({ width: innerWidth, scroll: document.documentElement.scrollWidth, charts: new Set(texts.map(e => e.ownerSVGElement)).size,
  figures: document.querySelectorAll("figure").length, wide: wide.map(e => e.tagName + " " + e.textContent.slice(0, 40)), faint, overlaps,
  smallest: Math.min(...texts.map(e => e.getBoundingClientRect().height)), dark: matchMedia("(prefers-color-scheme: dark)").matches }), "*");
"""

# Windows have a least width, frames have not.
FRAME = """<!doctype html><body style="margin:0"><iframe src="{}" style="border:0;width:{}px;height:900px"></iframe><script>
addEventListener("message", e => {{ const say = document.createElement("pre"); say.id = "probe"; say.textContent = e.data; document.body.append(say) }});
</script>"""


def chromium(page, width, height, theme, *options):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
               f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}", f"--window-size={width},{height}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


def compress(picture):
    """A PNG, its pixels packed tighter than Chromium takes the time for."""
    data, at, chunks, pixels = picture.read_bytes(), 8, [], b""
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at:at + 4]), data[at + 4:at + 8]
        pixels += data[at + 8:at + 8 + size] if kind == b"IDAT" else b""
        chunks += [] if kind == b"IDAT" else [(kind, data[at + 8:at + 8 + size])]
        at += size + 12
    chunks.insert(-1, (b"IDAT", zlib.compress(zlib.decompress(pixels), 9)))
    picture.write_bytes(data[:8] + b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                                            for kind, body in chunks))


class BrowserTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)

    def page(self, *files, script=""):
        text = subprocess.run([RENDER, *map(str, files)], capture_output=True, text=True, encoding="utf-8", check=True).stdout
        path = self.dir / "page.html"
        path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        return path

    def probe(self, page, width, theme):
        frame = self.dir / "frame.html"
        frame.write_text(FRAME.format(page.as_uri(), width))
        dom = chromium(frame, 1400, 1000, theme, "--dump-dom", "--virtual-time-budget=2000")
        found = re.search(r'<pre id="probe">(.*?)</pre>', dom.stdout, re.S)
        self.assertTrue(found, dom.stderr[-500:])
        return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    def test_fits_and_is_legible_at_each_width_in_each_theme(self):
        page = self.page(*SAMPLES, script=PROBE)
        for width in WIDTHS:
            for theme in ("light", "dark"):
                with self.subTest(width=width, theme=theme):
                    seen = self.probe(page, width, theme)
                    self.assertEqual(seen["width"], width)
                    self.assertEqual(seen["dark"], theme == "dark")
                    self.assertLessEqual(seen["scroll"], width)
                    self.assertEqual(seen["wide"], [])
                    self.assertEqual(seen["faint"], [])
                    self.assertEqual(seen["overlaps"], [])
                    self.assertEqual(seen["charts"], seen["figures"], "one of the three drawings of each chart is seen")
                    self.assertGreater(seen["smallest"], 9)

    def test_many_strategies_and_long_names_fit(self):
        document = json.loads((FOLDER / "sample_bench.json").read_text())
        document["strategies"] = [{**document["strategies"][i % 8], "name": f"selective:policy_{i}+budget={i * 37}MiB",
                                   "peak_bytes": document["strategies"][i % 8]["peak_bytes"] + i * 9_000_000} for i in range(12)]
        document["config"]["a_very_long_name_without_any_place_to_break_it"] = "x" * 200
        file = self.dir / "many.json"
        file.write_text(json.dumps(document))
        page = self.page(file, script=PROBE)
        for width in WIDTHS:
            seen = self.probe(page, width, "light")
            self.assertLessEqual(seen["scroll"], width)
            self.assertEqual(seen["wide"], [])

    def test_shows_the_level_under_the_pointer(self):
        script = """const svg = [...document.querySelectorAll("svg[data-plot]")].find(e => e.checkVisibility()), box = svg.getBoundingClientRect();
          svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 99}));
          parent.postMessage(JSON.stringify(document.querySelector(".readout").textContent), "*");"""
        readout = self.probe(self.page(FOLDER / "sample_timeline_none.json", script=script), 1280, "light")
        self.assertRegex(readout, r"^[\d.]+ ms: [\d.]+ MiB · .*parameters 38\.0")

    def test_prints(self):
        pdf = self.dir / "page.pdf"
        chromium(self.page(*SAMPLES), 1280, 900, "light", f"--print-to-pdf={pdf}")
        self.assertGreater(pdf.stat().st_size, 20_000)

    @unittest.skipUnless(os.environ.get("REPORT_SCREENSHOTS"), "REPORT_SCREENSHOTS names no folder")
    def test_screenshots(self):
        folder = Path(os.environ["REPORT_SCREENSHOTS"]).resolve()
        default = f"{FOLDER}/sample_bench.json {FOLDER}/sample_timeline_per_block.json"
        page = self.page(*os.environ.get("REPORT_DOCUMENTS", default).split())
        for name, width, height in (("desktop", 1280, 2080), ("phone", 360, 1560)):
            for theme in ("light", "dark"):
                picture = folder / f"report-{name}{'-dark' if theme == 'dark' else ''}.png"
                chromium(page, width, height, theme, f"--screenshot={picture}")
                compress(picture)
                self.assertLess(picture.stat().st_size, 300_000)


if __name__ == "__main__":
    if not CHROMIUM:
        print("no chromium here: skipped")
        sys.exit(77)
    unittest.main()
