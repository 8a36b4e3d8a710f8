#!/usr/bin/env python3
"""The parts of docs/site on small texts; scripts/docs runs it before it builds."""

import os
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import check_site  # noqa: E402
import declarations  # noqa: E402
import header_filter  # noqa: E402
import stage  # noqa: E402
from doxygen_text import Text, escape  # noqa: E402


def write(root, files):
    for path, text in files.items():
        path = os.path.join(root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


class HeaderFilter(unittest.TestCase):
    def test_a_comment_on_top_is_the_files(self):
        text = "#pragma once\n\n/// What the header is for.\nnamespace refrain {\n"
        self.assertEqual(header_filter.filtered(text), text.replace("once\n\n", "once\n/// @file\n"))

    def test_one_below_another_namespace_too(self):
        text = "namespace torch {\nclass A;\n}\n\n/// What it is for.\nnamespace refrain {\n"
        self.assertIn("}\n/// @file\n/// What", header_filter.filtered(text))

    def test_a_comment_of_a_declaration_stays_its_own(self):
        text = "\n/// A macro.\n#define A 1\n\nnamespace refrain {\n\n/// A class.\nclass A {};\n}\n"
        self.assertEqual(header_filter.filtered(text), text)

    def test_a_label_ends_what_is_before(self):
        self.assertEqual(header_filter.filtered("/// @throws E  if it fails.\n/// Cost: a lock. Threads: any."),
                         "/// @throws E  if it fails.\n/// @remark Cost: a lock. @remark Threads: any.")

    def test_no_label_in_code_or_in_a_sentence(self):
        text = "///     // Cost: code\n/// The Cost: of it\nint Cost: 1;"
        self.assertEqual(header_filter.filtered(text), text)


class DeclarationText(unittest.TestCase):
    def check(self, header, line, expected):
        self.assertEqual(declarations.declaration_text(header.split("\n"), line), expected)

    def test_without_the_body(self):
        self.check("/// Doc.\ntemplate <typename F>\n  requires(!A<F>)\nint f(F&& f) {\n  return 1;\n}", 4,
                   "template <typename F>\n  requires(!A<F>)\nint f(F&& f)")

    def test_without_initializers_but_with_default_arguments(self):
        self.check("  explicit A(Options o = {}, int n = int{3}) : o_(o), n_{n} {}", 1, "explicit A(Options o = {}, int n = int{3})")

    def test_without_comment_and_export(self):
        self.check("  int a();\n  REFRAIN_API int64_t b() const;  ///< of b", 2, "int64_t b() const")

    def test_a_requires_expression_is_part_of_it(self):
        self.check("template <typename T>\n  requires requires(T t) { t.f(); }\nvoid g(T t);", 3,
                   "template <typename T>\n  requires requires(T t) { t.f(); }\nvoid g(T t)")


class Description(unittest.TestCase):
    text = Text(lambda code: "a.md#A" if code == "A" else None, lambda id: None, escape)

    def blocks(self, xml):
        return self.text.blocks(ElementTree.fromstring(f"<d>{xml}</d>"))

    def test_code_is_linked_and_prose_escaped(self):
        self.assertEqual(self.blocks("<para>of <computeroutput>A</computeroutput>, a_b &lt; 2</para>"), "of [`A`](a.md#A), a\\_b &lt; 2")

    def test_dashes_are_those_of_the_header(self):
        self.assertEqual(self.blocks("<para><computeroutput><ndash/>limits</computeroutput></para>"), "`--limits`")

    def test_throws(self):
        item = ("<parameteritem><parameternamelist><parametername>{}</parametername></parameternamelist>"
                "<parameterdescription><para>{}</para></parameterdescription></parameteritem>")
        both = item.format("A", "if empty.") + item.format("whatever", "it throws.")
        self.assertEqual(self.blocks(f'<para>Does it. <parameterlist kind="exception">{both}</parameterlist></para>'),
                         "Does it.\n\n**Throws**\n\n- [`A`](a.md#A) if empty.\n- whatever it throws.")

    def test_a_label_is_bold(self):
        self.assertEqual(self.blocks('<para><simplesect kind="remark"><para>Cost: a lock.</para></simplesect></para>'), "**Cost:** a lock.")

    def test_an_element_that_it_does_not_know(self):
        with self.assertRaisesRegex(SystemExit, "<formula>"):
            self.blocks("<para><formula>x</formula></para>")


class Markdown(unittest.TestCase):
    def test_links_but_not_in_code(self):
        text = "[a](x.md) `[b](x.md)` [`c`](x.md#d)\n```\n[e](x.md)\n```\n![f](x.md)"
        self.assertEqual(stage.replace_links(text, lambda target: target.upper()),
                         "[a](X.MD) `[b](x.md)` [`c`](X.MD#D)\n```\n[e](x.md)\n```\n![f](X.MD)")

    def test_a_list_right_below_a_paragraph(self):
        self.assertEqual(stage.for_python_markdown("Two:\n- a\n  more\n- b"), "Two:\n\n- a\n    more\n- b")

    def test_a_list_in_a_list(self):
        self.assertEqual(stage.for_python_markdown("* a\n  * b\n    more\n  * c\n* d\n\nafter"),
                         "* a\n    * b\n        more\n    * c\n* d\n\nafter")

    def test_code_in_a_list(self):
        self.assertEqual(stage.for_python_markdown("- a\n  ```\n    x\n  ```\n\nafter"), "- a\n\n    ```\n      x\n    ```\n\nafter")

    def test_code_stays(self):
        text = "```cpp\n- a\n  b\n\n| c\n```\n\n    - d"
        self.assertEqual(stage.for_python_markdown(text), text)

    def test_a_number_in_a_paragraph(self):
        self.assertEqual(stage.for_python_markdown("It took\n12. That is long."), "It took\n12. That is long.")
        self.assertEqual(stage.for_python_markdown("It has two:\n1. this\n2. that"), "It has two:\n\n1. this\n2. that")


class Staged(unittest.TestCase):
    def test_links_of_a_document(self):
        with tempfile.TemporaryDirectory() as root:
            write(root, {"README.md": "# R\n[h](include/refrain/a.h) [d](include/refrain) [s](examples) [e](examples/e.cc) [p](p.png) "
                                      "[g](docs/guide) [x](missing.md)", "p.png": "", "docs/guide/README.md": "# G\n[r](../../README.md#r)",
                         "docs/site/site.css": "", "docs/site/mkdocs.yml": "", "examples/e.cc": "int e;\n",
                         "include/refrain/a.h": "", "out/src/api/a.md": "# a.h", "out/src/api/README.md": "# API"})
            stage.Stage(root, os.path.join(root, "out")).run()
            with open(os.path.join(root, "out/src/README.md"), encoding="utf-8") as file:
                self.assertEqual(file.read(), "# R\n[h](api/a.md) [d](api/README.md) [s](examples/README.md) [e](examples/e.cc.md) "
                                              "[p](p.png) [g](docs/guide/README.md) [x](missing.md)")
            for path in ("examples/e.cc.md", "include/refrain/a.h.md", "docs/guide/README.md", "p.png"):
                self.assertTrue(os.path.isfile(os.path.join(root, "out/src", path)), path)


class Site(unittest.TestCase):
    def check(self, body, **more):
        with tempfile.TemporaryDirectory() as site:
            write(site, {"a.html": f"<html><body>{body}</body></html>", "b/index.html": "<h1 id='top'>B</h1>", **more})
            return "\n".join(check_site.check(site)[2])

    def test_links_that_are_there(self):
        self.assertEqual(self.check("<h1 id='x'></h1><a href='#x'></a><a href='b/'></a><a href='b/index.html#top'></a>"
                                    "<a href='https://elsewhere/'></a><a href='/a.html'></a>"), "")

    def test_a_dead_link(self):
        self.assertIn("a.html: c.html: there is no c.html", self.check("<a href='c.html'></a>"))

    def test_a_dead_anchor(self):
        self.assertIn("b/index.html has no anchor `botom`", self.check("<a href='b/index.html#botom'></a>"))
        self.assertIn("a.html has no anchor `y`", self.check("<a href='#y'></a>"))

    def test_a_missing_picture(self):
        self.assertIn("there is no p.png", self.check("<img src='p.png'>"))

    def test_a_link_out_of_the_site(self):
        self.assertIn("there is no ../x", self.check("<a href='../x'></a>"))

    def test_a_script_from_elsewhere(self):
        self.assertIn("loads https://elsewhere/s.js", self.check("<script src='https://elsewhere/s.js'></script>"))

    def test_markdown_in_the_text(self):
        self.assertIn("Markdown is left", self.check("<p>[a](b.md)</p>"))
        self.assertEqual(self.check("<p><code>[a](b)</code></p>"), "")


if __name__ == "__main__":
    unittest.main()
