#!/usr/bin/env python3
"""Prints a header as Doxygen should read it. Line numbers stay, unless the header begins with its comment. Two things differ:

    a comment on top of the file is the file's, not that of `namespace refrain` after it;
    a line that begins with `Cost:`, `Threads:`, ... ends the `@param` or `@throws` before it.
"""

import re
import sys

LABELS = "Cost|Threads|Source|Errors"
LABEL_LINE = re.compile(rf"^(\s*///<?\s{{1,3}})((?:{LABELS})(?: [\w ,]{{1,40}})?: )")
LABEL_INSIDE = re.compile(r"(?<=[.)] )(?=(?:Cost|Threads|Source): )")


def mark_file_comment(lines):
    """Puts `@file` on the empty line before the comment that stands alone above `namespace refrain`."""
    i = 0
    while i < len(lines) and not re.match(r"namespace refrain\b", lines[i]):
        if not lines[i].startswith("///"):
            i += 1
            continue
        first = i
        while i < len(lines) and lines[i].startswith("///"):
            i += 1
        if i == len(lines) or not re.match(r"\s*$|#\s*(include|pragma)|namespace refrain\b", lines[i]):
            continue
        if any(re.search(r"[@\\]file\b", line) for line in lines[first:i]):
            return
        if first > 0 and not lines[first - 1].strip():
            lines[first - 1] = "/// @file"
        else:
            lines[first] = "/// @file\n" + lines[first]
        return


def filtered(text):
    lines = text.split("\n")
    mark_file_comment(lines)
    for i, line in enumerate(lines):
        if "///" in line:
            lines[i] = LABEL_INSIDE.sub("@remark ", LABEL_LINE.sub(r"\1@remark \2", line))
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.stdout.write(filtered(file.read()))
