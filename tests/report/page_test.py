"""Reads whole pages as a reader would. Every number that is shown must be one of the documents'. REPORT_RENDER draws them."""

import json
import os
import re
import subprocess
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path

RENDER = os.environ.get("REPORT_RENDER", "build/bin/report_render")
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
VOID = {"meta", "br", "hr", "img", "link", "input"}


def render(*files):
    return subprocess.run([RENDER, *map(str, files)], capture_output=True, text=True, encoding="utf-8", timeout=60)


def collect(value, numbers, strings):
    if isinstance(value, dict):
        strings.update(value)
    if isinstance(value, (dict, list)):
        for member in value.values() if isinstance(value, dict) else value:
            collect(member, numbers, strings)
    elif isinstance(value, str):
        strings.add(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        numbers.add(value)


class Page(HTMLParser):
    """Texts with the elements around them; whatever is not nested as it should be is a `fault`."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.tooltips, self.ids, self.references, self.faults = [], [], [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag, _ in self.open]

    def handle_starttag(self, tag, attributes, closed=False):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.references += (attributes.get("aria-labelledby") or "").split()
        self.references += [attributes["href"][1:]] if attributes.get("href", "").startswith("#") else []
        self.tooltips += [attributes["title"]] if "title" in attributes else []
        if tag not in VOID and not closed:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes, closed=True)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.faults.append(f"{tag} closed within {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.append((data.strip(), list(self.open)))


def shown_number(text):
    """The number in "−1,234.5 %", and half of its last digit."""
    digits = text.replace("−", "-").replace(",", "").rstrip("×% ")
    decimals = len(digits.partition(".")[2])
    return float(digits), 0.5000001 * 10 ** -decimals


def is_rounding(text, candidates):
    number, slack = shown_number(text)
    return any(abs(number - c) <= slack + 1e-9 * abs(c) for c in candidates)


class PageTest(unittest.TestCase):
    def pages(self):
        for files in [[f] for f in SAMPLES] + [SAMPLES]:
            result = render(*files)
            self.assertEqual(result.returncode, 0, result.stderr)
            numbers, strings = set(), set()
            for file in files:
                collect(json.loads(file.read_text()), numbers, strings)
            yield Page(result.stdout), numbers, strings

    def test_is_well_formed_with_unique_ids_and_no_dangling_reference(self):
        for page, _, _ in self.pages():
            self.assertEqual(page.faults, [])
            self.assertEqual(len(page.ids), len(set(page.ids)))
            self.assertLessEqual(set(page.references), set(page.ids))

    def test_every_number_is_in_the_documents(self):
        for page, numbers, strings in self.pages():
            shown = 0
            for text, around in page.texts:
                tags = [tag for tag, _ in around]
                attributes = around[-1][1]
                if tags[-1] in ("style", "script") or attributes.get("class") == "tick":
                    continue
                if tags[-1] in ("title", "desc"):
                    self.check_words(text, numbers, strings)
                elif "value" in attributes or "data-value" in attributes or "data-ratio" in attributes:
                    shown += 1
                    self.check_number(text, attributes, numbers)
                else:
                    self.assertNotRegex(self.without(text, strings), r"\d", f"{text!r} in {around[-1]}")
            self.assertGreater(shown, 10)
            for tooltip in page.tooltips:
                self.check_words(tooltip, numbers, strings)

    def check_number(self, text, attributes, numbers):
        ratio = attributes.get("data-ratio") or (attributes["value"] if attributes.get("class") == "ratio" else None)
        if ratio:
            part, whole = map(float, ratio.split("/"))
            self.assertIn(part, numbers)
            self.assertIn(whole, numbers)
            candidates = [100 * part / whole, 100 * (1 - part / whole)]
        else:
            exact = float(attributes.get("value") or attributes["data-value"])
            self.assertIn(exact, numbers)
            candidates = [exact, exact / 1000, 100 * exact, *(exact / 1024 ** k for k in range(1, 7))]
        self.assertTrue(is_rounding(text, candidates), f"{text} {attributes}")

    def check_words(self, text, numbers, strings):
        for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", self.without(text, strings)):
            value = float(number.rstrip(",").replace(",", ""))
            self.assertTrue(value in numbers or -value in numbers, f"{number} in {text!r}")

    def without(self, text, strings):
        """What is left when the documents' own texts, whole or cut short by an ellipsis, are taken out."""
        if text.endswith("…") and any(s.startswith(text[:-1]) for s in strings):
            return ""
        for string in sorted((s for s in strings if re.search(r"\d", s)), key=len, reverse=True):
            text = text.replace(string.strip(), "")
        return text

    def test_levels_for_the_script_are_in_the_documents(self):
        for page, numbers, _ in self.pages():
            for text, around in page.texts:
                if "data-levels" in around[-1][1]:
                    levels = json.loads(text)
                    for number in levels["t"] + levels["total"] + [n for _, kind in levels["kinds"] for n in kind]:
                        self.assertIn(number, numbers)

    def test_charts_have_titles_descriptions_and_a_table_near_them(self):
        for page, _, _ in self.pages():
            charts = [a for _, around in page.texts for tag, a in around if tag == "svg" and "aria-labelledby" in a]
            self.assertTrue(charts)
            tables = sum(1 for text, around in page.texts if around[-1][0] == "caption")
            self.assertTrue(tables)

    def test_hostile_text_stays_text(self):
        document = json.loads((Path(__file__).parent / "samples/sample_bench.json").read_text())
        hostile = "</title></style><script>alert('1')</script>"
        document["model"] = document["strategies"][1]["name"] = hostile
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "x.json"
            file.write_text(json.dumps(document))
            page = Page(render(file).stdout)
        self.assertEqual(page.faults, [])
        self.assertIn(hostile, [text for text, _ in page.texts])
        scripts = [text for text, around in page.texts if around[-1][0] == "script"]
        self.assertFalse([s for s in scripts if "alert" in s])

    def test_malformed_documents_are_named(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "x.json"
            file.write_text('{"kind": "bench", "version": 1, "model": "m", "config": {}, "machine": {}, "strategies": [{}]}')
            result = render(SAMPLES[0], file)
        self.assertEqual(result.returncode, 2)
        self.assertIn("x.json': `strategies[0].name`: found nothing", result.stderr)


if __name__ == "__main__":
    unittest.main()
