#!/usr/bin/env python3
"""What prose_numbers.py finds, and what it lets pass."""
import tempfile
import unittest
from pathlib import Path

from prose_numbers import faults, number

HEADER = """
class Options {
 public:
  /// Values of fewer bytes stay. Default: %s.
  Options& min_bytes(Bytes value) {
  }
 private:
  Bytes min_bytes_ = 64_KiB;
  double other_ = 0.5;
};
"""


class ProseNumbers(unittest.TestCase):
    def found(self, said, prose):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "include/refrain").mkdir(parents=True)
            (root / "include/refrain/options.h").write_text(HEADER % said)
            (root / "guide.md").write_text(prose)
            return list(faults(root, ["guide.md"]))

    def test_equal_numbers_pass(self):
        self.assertEqual(self.found("64 KiB", "storages below `min_bytes` (64 KiB), or `min_bytes` (65536); `threads` (3)"), [])

    def test_another_number_in_a_comment(self):
        self.assertIn("min_bytes", self.found("32 KiB", "")[0])

    def test_another_number_in_a_document(self):
        self.assertIn("guide.md", self.found("64 KiB", "storages below `min_bytes` (4096)")[0])

    def test_numbers(self):
        self.assertEqual(number("64_KiB"), 65536)
        self.assertEqual(number("4096"), 4096)
        self.assertIsNone(number("the one"))


if __name__ == "__main__":
    unittest.main()
