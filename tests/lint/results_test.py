#!/usr/bin/env python3
"""Files in bench/results have their form; what results_file.py and tables.py refuse, and what they make."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import results_file  # noqa: E402
import tables  # noqa: E402
from results_file import Refused  # noqa: E402

COMMIT = "0123456789" * 4


def origin(**changes):
    return {"date": "2026-01-01T00:00:00+00:00", "commit": COMMIT, "clean": True, "machine": {"cores": 2}, "versions": {}, "config": {}} | changes


def refusal(call, *args):
    try:
        call(*args)
    except Refused as error:
        return str(error)
    return ""


class Stored(unittest.TestCase):
    def test_every_file_has_its_kind_and_form(self):
        for path in sorted(results_file.RESULTS.iterdir()):
            with self.subTest(path.name):
                kind = f"bench/{path.stem}"
                self.assertIn(kind, results_file.VERSIONS, "write it by bench/results_file.py, and name its kind there")
                self.assertEqual(results_file.encode(results_file.read(path, kind)), path.read_text(), "one row a line")


class Documents(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "new/limits.json"

    def test_what_is_written_is_read(self):
        rows = [{"percent": 50, "ms": 1.23456789012}, {"percent": 40, "ms": 2.0, "fits": None}]
        whole = results_file.document("bench/limits", origin(), [{"model": "gpt", "rows": rows}], notes=["one"])
        results_file.write(self.path, whole)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])
        rows[0]["ms"] = 1.23456789
        self.assertEqual(results_file.read(self.path, "bench/limits"), whole)
        lines = self.path.read_text().splitlines()
        self.assertIn('    {"percent": 50, "ms": 1.23456789},', lines)
        self.assertIn(' "machine": {"cores": 2},', lines)
        with self.assertRaises(ValueError):
            results_file.write(self.path, results_file.document("bench/limits", origin(), [{"model": "gpt", "ms": float("nan")}]))
        self.assertEqual(self.path.read_text().splitlines(), lines)

    def test_another_kind_or_version_is_named(self):
        whole = results_file.document("bench/limits", origin(), [])
        check = results_file.check
        self.assertEqual(refusal(check, whole | {"version": 2}, "bench/limits", "a.json"),
                         'a.json: found kind "bench/limits" version 2; expected kind "bench/limits" version 1')
        self.assertIn('found kind "bench/limits" version 1; expected kind "bench/plan" version 1', refusal(check, whole, "bench/plan"))
        self.assertIn("found kind null version null", refusal(check, {}, "bench/plan"))
        self.assertIn("found a list", refusal(check, [], "bench/plan"))
        self.path.parent.mkdir()
        self.path.write_text("{")
        self.assertIn("limits.json: found no JSON", refusal(results_file.read, self.path, "bench/limits"))

    def test_members(self):
        def refused(changes, models=({"model": "gpt"},)):
            whole = results_file.document("bench/limits", origin(), list(models)) | changes
            return refusal(results_file.check, {k: v for k, v in whole.items() if v != "gone"}, "bench/limits")

        self.assertEqual(refused({}), "")
        self.assertIn("`date`: found nothing", refused({"date": "gone"}))
        self.assertIn("`clean`: found 1; expected bool", refused({"clean": 1}))
        self.assertIn("`changed_files`: found a member of no meaning", refused({"changed_files": 0}))
        self.assertIn('`models[0].commit`: found "HEAD"', refused({"commit": "HEAD"}))
        self.assertIn("`models[0].clean`: found true without a commit", refused({"commit": None}))
        self.assertIn("with a gpt of a dirty tree", refused({"models": [{"model": "gpt", "clean": False}]}))
        self.assertIn("`models[1]`", refused({"models": [{"model": "gpt"}, {"model": "gpt"}]}))

    def test_models_of_several_runs_keep_their_origin(self):
        first = results_file.document("bench/limits", origin(clean=False, machine={"cores": 1}), [{"model": "gpt", "ms": 1}, {"model": "mlp", "ms": 1}],
                                      notes=["rough"])
        second = results_file.document("bench/limits", origin(commit="f" * 40), [{"model": "mlp", "ms": 2}], kept=first)
        results_file.check(second, "bench/limits")
        self.assertEqual((second["clean"], second["notes"]), (False, ["rough"]))
        gpt, mlp = sorted(second["models"], key=lambda m: m["model"])
        seen = [[m["ms"], *(results_file.of(second, m, name) for name in ("commit", "clean", "machine"))] for m in (gpt, mlp)]
        self.assertEqual(seen, [[1, COMMIT, False, {"cores": 1}], [2, "f" * 40, True, {"cores": 2}]])
        third = results_file.document("bench/limits", origin(), [{"model": "gpt", "ms": 3}, {"model": "mlp", "ms": 3}], kept=second)
        self.assertEqual((third["clean"], third["notes"], third["models"]), (True, [], [{"model": "gpt", "ms": 3}, {"model": "mlp", "ms": 3}]))


@unittest.skipUnless(shutil.which("git"), "found no git")
class Trees(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def git(self, *words):
        subprocess.run(["git", "-C", self.root, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    def commit(self):
        self.git("init", "-q")
        (self.root / "a").write_text("1")
        self.git("add", "a")
        self.git("commit", "-qm", "a")

    def clean(self, run):
        return run.origin({}, {})["clean"]

    def test_a_dirty_tree_is_refused_unless_allowed(self):
        self.assertIn("found no git repository", refusal(results_file.Run, False, self.root))
        self.commit()
        run = results_file.Run(root=self.root)
        self.assertEqual((self.clean(run), len(run.origin({}, {})["commit"])), (True, 40))
        (self.root / "bench/results").mkdir(parents=True)
        (self.root / "bench/results/peers.json").write_text("{}")
        self.assertTrue(self.clean(results_file.Run(root=self.root)))
        (self.root / "b").write_text("untracked")
        self.assertIn("found 1 uncommitted changes (?? b, ...); expected a clean tree", refusal(results_file.Run, False, self.root))
        self.assertFalse(self.clean(results_file.Run(True, self.root)))
        self.assertFalse(self.clean(run), "changed since it began")


class Tables(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "docs/design").mkdir(parents=True)
        turns = [{"row": "none", "fits": True, "heap": heap, "peak_bytes": 10 << 20, "resident_peak_bytes": size << 20, "step_ms_median": ms, "bit_equal": True}
                 for heap, size, ms in (("malloc", 30, 4.0), ("malloc", 34, 6.0), ("refrain", 31, 3.0), ("refrain", 30, 3.0))]
        refused = [{"row": "40 % limit", "fits": False, "heap": heap, "code": 3, "message": "m"} for heap in ("malloc", "refrain")]
        model = {"model": "gpt", "base_bytes": 20 << 20, "rows": turns + refused}
        results_file.write(self.root / "bench/results/resident.json", results_file.document("bench/resident", origin(), [model]))

    def document(self, text):
        (self.root / "docs/design/memory.md").write_text(text)

    def test_a_table_is_made_checked_and_written(self):
        self.document("before\n<!-- table: resident -->\nold\n<!-- /table -->\nafter 10.0\n")
        (fault,) = tables.run(self.root, False)
        self.assertIn("docs/design/memory.md: table resident: found 'old', expected", fault)
        self.assertEqual(tables.run(self.root, True), [])
        text = (self.root / "docs/design/memory.md").read_text()
        self.assertIn("\n| gpt, none | 10.0 | 14.0 | 11.0 | 26.8 | 5 / 3 |\n\n<!-- /table -->\nafter 10.0\n", text)
        self.assertNotIn("40 %", text)
        self.assertEqual(tables.run(self.root, False), [])
        self.document(text.replace("| 26.8 |", "| 25.8 |"))
        self.assertIn("25.8", tables.run(self.root, False)[0])

    def test_regions(self):
        for text, says in (("", "found tables (none); expected resident"), ("<!-- table: resident -->\n", "without beginning or end"),
                           ("<!-- table: other -->\n<!-- /table -->\n", "found tables other"), ("<!-- /table -->\n", "without beginning or end"),
                           ("<!-- table: resident -->\n<!-- /table -->\n" * 2, "found tables resident, resident")):
            self.document(text)
            self.assertIn(says, refusal(tables.run, self.root, False), text)

    def test_the_script_says_what_is_wrong(self):
        self.document("<!-- table: resident -->\nold\n<!-- /table -->\n")
        with self.assertRaises(SystemExit) as stopped, contextlib.redirect_stderr(io.StringIO()):
            sys.argv = ["tables.py", "--check", "--root", str(self.root)]
            tables.main()
        self.assertIn("run bench/tables.py --write", stopped.exception.code)

    def test_numbers(self):
        self.assertEqual([tables.milliseconds(*pair) for pair in ((15.13, 15), (279.49, 290), (2.475, 240), (-0.6, 240), (10.4, 240))],
                         ["15.1", "279", "2.5", "-0.6", "10"])
        self.assertEqual(tables.pair(3, 3, str), ("**3**", "3"))
        self.assertEqual(tables.pair(4, 3, str), ("4", "**3**"))


class Json(unittest.TestCase):
    def test_lines(self):
        deep = {"rows": [], "plans": {"auto": {"phases": [["a", 1.0], ["b", 2.0]]}, "xla": {"fits": True}}}
        text = results_file.encode(deep)
        self.assertEqual(json.loads(text), deep)
        self.assertEqual(text.splitlines(), ['{', ' "rows": [],', ' "plans": {', '  "auto": {"phases": [["a", 1.0], ["b", 2.0]]},',
                                             '  "xla": {"fits": true}', ' }', '}'])


if __name__ == "__main__":
    unittest.main()
