#!/usr/bin/env python3
"""phrases_test.py finds planted phrases, with their lines, and leaves ordinary English and code alone: on small trees made for it."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import phrases_test  # noqa: E402


class Phrases(unittest.TestCase):
    def found(self, files):
        """["file:line: phrase"]"""
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                os.makedirs(os.path.dirname(os.path.join(root, path)) or root, exist_ok=True)
                with open(os.path.join(root, path), "w") as file:
                    file.write(text)
            return [f"{name}:{line}: {phrase}" for name, line, phrase, _, _ in phrases_test.check(root)]

    def in_prose(self, text):
        return [hit.split(": ", 1)[1] for hit in self.found({"README.md": text})]

    def test_clean_trees(self):
        self.assertEqual(self.found({}), [])
        self.assertEqual(self.found({"include/a.h": "/// Evicts tensors.\nint a();\n", "README.md": "# Trains in less memory\n"}), [])

    def test_a_comment_of_a_header_over_two_lines(self):
        self.assertEqual(self.found({"include/a.h": "#pragma once\n/// The bytes\n/// come\n/// back.\n"}), ["include/a.h:3: come back"])

    def test_a_trailing_comment_and_what_follows(self):
        text = "int a;  ///< values leave\nint b;  ///< memory is fine\nint c;  ///< has left\n"
        self.assertEqual(self.found({"include/a.h": text}), ["include/a.h:1: values leave", "include/a.h:3: has left"])

    def test_comments_of_sources_are_not_read(self):
        self.assertEqual(self.found({"src/a.cc": "// comes back\nint a;\n", "apps/a.cc": "/* a plain run */\n"}), [])

    def test_literals_that_continue_each_other(self):
        text = 'auto a = "a limit that the step "\n         "cannot do";\nauto b = R"(told\nso)";\n'
        self.assertEqual(self.found({"src/x/a.cc": text}), ["src/x/a.cc:2: cannot do", "src/x/a.cc:3: told so"])

    def test_literals_apart_do_not(self):
        self.assertEqual(self.found({"src/a.cc": 'f("values come", "back to the system");\n'}), [])

    def test_characters_comments_and_escapes_in_code(self):
        text = "char q = '\"';  // \"plain run\"\nauto s = \"say \\\"a plain run\\\"\";\n"
        self.assertEqual(self.found({"src/a.cc": text}), ["src/a.cc:2: plain run"])

    def test_names_are_not_prose(self):
        self.assertEqual(self.found({"src/a.cc": 'json["plain"] = refill("refill"); move("plain_peak_bytes");\n'}), [])

    def test_a_help_text_begins_with_a_noun_or_a_verb(self):
        text = 'add("--seed", seed, "of weights and data");\nadd("--budget", b, "what it is");\nadd("--x", "out of 10");\n'
        self.assertEqual(self.found({"apps/refrain/options.cc": text}), ["apps/refrain/options.cc:1: of", "apps/refrain/options.cc:2: what"])
        self.assertEqual(self.found({"apps/refrain/train.cc": text}), [])

    def test_a_comment_of_a_header_begins_with_a_verb_or_a_noun(self):
        self.assertEqual(self.found({"include/a.h": "/// What a cap did.\nint a;\n\n/// Time of it.\n/// What else.\nint b;\n"}), ["include/a.h:1: What"])

    def test_prose_over_lines_tables_and_fences(self):
        text = (
            "A step is bit-equal to a\nplain run.\n\n| a | the least\n| limit | what may leave first |\n\n"
            "```\nprinted: a plain run\n```\n```cpp\nint a;  // brings it back\nauto plain_run = 1;\n```\n"
        )
        self.assertEqual(self.found({"README.md": text}), ["README.md:2: plain run", "README.md:5: may leave", "README.md:11: brings it back"])

    def test_guides_are_read_and_other_documents_are_not(self):
        self.assertEqual(self.found({"docs/guide/a.md": "Runs plainly.\n", "docs/design/b.md": "Runs plainly.\n"}), ["docs/guide/a.md:1: plainly"])

    def test_words_of_the_conventions(self):
        for text, phrase in {
            "Values leave memory first.": "leave memory",
            "All of it has left.": "has left",
            "It is computed once again.": "computed once again",
            "It brings the bytes back.": "brings the bytes back",
            "An operator refills it.": "refills",
            "As in the plain run.": "plain run",
            "These are the plain ones: the plain peak.": "plain peak",
            "A limit of 3 MiB cannot do.": "cannot do",
            "It is told so by the launcher.": "told so",
            "No more than what it may take.": "what it may take",
            "This goes before that.": "goes before",
            "Rank 3 is late.": "is late",
            "Rank 2 did not come.": "did not come",
            "A rank that has ended is noticed.": "rank that has ended",
            "Equal in both sources.": "both sources",
            "Keeps results dear to compute.": "dear to",
            "It adds at least 3 ms.": "adds at least",
            "The plan of least peak.": "least peak",
            "It takes a step as a part of the peak.": "as a part of the peak",
            "A warning says so once.": "says so",
            "Nothing can leave then.": "can leave",
        }.items():
            self.assertEqual(self.in_prose(text), [phrase], text)

    def test_ordinary_english(self):
        for text in (
            "Leave a tenth above it, or leave it out.",
            "You can leave the guard open and must leave room for scratch.",
            "The plan does not know how recomputing it leaves the caches.",
            "Pages are given back to the system; go back one step.",
            "Run the step again.",
            "A plain struct, plain text, no plain storage, and a plain pointer.",
            "## What it cannot do yet",
            "The leaves of the graph are leaf tensors. Gradients of leaves.",
            "Only a part of the model: the late layers are later than the early ones.",
            "The rank is missing, exited or timed out.",
            "Source: Chen et al. Two source files.",
            "The recorded operators are replayed.",
            "It holds the most of them.",
        ):
            self.assertEqual(self.in_prose(text), [], text)

    def test_a_failure_names_the_words_and_the_sentence(self):
        with tempfile.TemporaryDirectory() as root:
            with open(os.path.join(root, "README.md"), "w") as file:
                file.write("First. Values leave memory here. Last.\n")
            (name, line, phrase, words, sentence) = phrases_test.check(root)[0]
        self.assertEqual((name, line, phrase, sentence), ("README.md", 1, "leave memory", "Values leave memory here."))
        self.assertIn("evict", words)


if __name__ == "__main__":
    unittest.main()
