#!/usr/bin/env python3
"""layers_test.py finds each rule broken: on small trees made for it."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import layers_test  # noqa: E402

LAYERS = "low:\nmiddle: low\nhigh: low middle\n"


class Layers(unittest.TestCase):
    def check(self, files, layers=LAYERS):
        with tempfile.TemporaryDirectory() as src:
            for path, text in {"LAYERS": layers, "low/a.h": "", "middle/b.h": '#include "low/a.h"\n', **files}.items():
                os.makedirs(os.path.dirname(os.path.join(src, path)) or src, exist_ok=True)
                with open(os.path.join(src, path), "w") as file:
                    file.write(text)
            return "\n".join(layers_test.check(src))

    def test_a_tree_that_keeps_to_them(self):
        self.assertEqual(self.check({"high/c.cc": '#include "middle/b.h"\n#include "low/a.h"\n#include <vector>\n'}), "")

    def test_an_include_upward(self):
        self.assertIn("src/low/d.cc includes middle/b.h: low may include nothing", self.check({"low/d.cc": '#include "middle/b.h"\n'}))

    def test_an_include_with_spaces(self):
        self.assertIn("src/low/d.cc includes middle/b.h", self.check({"low/d.cc": '  #  include "middle/b.h"\n'}))

    def test_a_cycle_of_folders_that_the_rules_allow(self):
        found = self.check({"low/d.cc": '#include "middle/b.h"\n'}, "low: middle\nmiddle: low\n")
        self.assertIn("folders that include each other: low middle", found)

    def test_units_that_include_each_other(self):
        found = self.check({"low/x.h": "", "low/x.cc": '#include "low/y.h"\n', "low/y.h": "", "low/y.cc": '#include "low/x.h"\n'})
        self.assertIn("units that include each other: low/x low/y", found)

    def test_a_folder_without_a_rule(self):
        self.assertIn("src/new has no line in src/LAYERS", self.check({"new/d.h": ""}))

    def test_a_rule_for_a_folder_that_has_none(self):
        with self.assertRaises(SystemExit):
            self.check({}, "low: lower\n")


if __name__ == "__main__":
    unittest.main()
