#!/usr/bin/env python3
"""What named_tests finds missing."""
import pathlib
import tempfile
import unittest

from named_tests import missing, named


class Named(unittest.TestCase):
    def test_only_whole_code_spans_count(self):
        text = "`Suite.Name` and `a.B`, `Type.h`\n`Two.Tests`, `Two.More` but not Bare.Words or `x Suite.Name`"
        self.assertEqual(list(named(text)), [(1, "Suite.Name"), (2, "Two.Tests"), (2, "Two.More")])

    def test_missing(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "tests/tape").mkdir(parents=True)
            (root / "tests/tape/a_test.cc").write_text("TEST(A, Plain) {}\nTEST_F(B, Fixture) {\n}\nTEST_P(C,\n       Wrapped) {}\n")
            (root / "good.md").write_text("`A.Plain` `B.Fixture` `C.Wrapped`")
            (root / "bad.md").write_text("\n`A.Plain` `A.Fixture`")
            (root / "none.md").write_text("words")
            self.assertEqual(list(missing(root, ["good.md"])), [])
            self.assertEqual(list(missing(root, ["bad.md", "none.md"])),
                             ["bad.md:2: there is no test A.Fixture", "none.md: names no test"])


if __name__ == "__main__":
    unittest.main()
