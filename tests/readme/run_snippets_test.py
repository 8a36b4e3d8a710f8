#!/usr/bin/env python3
"""What run_snippets takes from a Markdown text."""
import unittest

from run_snippets import extract, fragments_source

TEXT = """# Title
```cpp
#include <vector>
int main() {}
```
```sh
make demo
```
<!-- not compiled -->
```cpp
sketch(...);
```

<!-- setup: int x = 1; -->

```cpp
#include <map>
use(x);
```
words
<!-- continues -->
```cpp
use_again(x);
```
"""


class Extract(unittest.TestCase):
    def test_programs_fragments_and_marks(self):
        snippets, skipped = extract("F.md", TEXT)
        self.assertEqual([(s.where, s.is_program) for s in snippets], [("F.md:3", True), ("F.md:17", False)])
        self.assertEqual(skipped, ["F.md:11"])
        self.assertTrue(snippets[1].code.startswith('int x = 1;\n#line 17 "F.md"\n'))
        self.assertIn('#line 23 "F.md"\nuse_again(x);', snippets[1].code)

    def test_a_mark_holds_for_the_next_snippet_only(self):
        _, skipped = extract("F.md", "<!-- not compiled -->\n```cpp\na\n```\n```cpp\nb\n```\n<!-- not compiled -->\nword\n```cpp\nc\n```\n")
        self.assertEqual(skipped, ["F.md:3"])

    def test_nothing_to_continue(self):
        with self.assertRaises(SystemExit):
            extract("F.md", "<!-- continues -->\n```cpp\na\n```\n")

    def test_includes_move_to_the_top(self):
        source = fragments_source(extract("F.md", TEXT)[0][1:])
        self.assertLess(source.index("#include <map>"), source.index("static void"))
        self.assertIn("case 0: snippet_0(); return 0;", source)


if __name__ == "__main__":
    unittest.main()
