#!/usr/bin/env python3
"""Numbers that prose shares with a header are those of the header.

In the public headers a comment "Default: V" stands before a setter, and the member behind it has the value. In the documents, "`name` (V)" after the name of
such an option is its default. Usage: prose_numbers.py ROOT [DOCUMENT...]; default: README.md
and docs."""
import re
import sys
from pathlib import Path

MEMBER = re.compile(r"^\s+[\w:<> ]+?\b(\w+)_ = ([^;]+);", re.M)
SETTER = re.compile(r"((?:^\s*///.*\n)+)^\s*\w+& (\w+)\(", re.M)
NUMBER = r"\d[\d_,.]*(?:\s*[KMG]i?B)?"
UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def number(text):
    """The value of "4096", "64_KiB", "64 KiB", "8'192", or None if it is none."""
    match = re.fullmatch(r"([\d',.]+)[_ ]?([KMG]?i?B?)", text.strip().rstrip("."))
    if not match or match.group(2).upper() not in UNITS:
        return None
    return float(match.group(1).replace("'", "").replace(",", "")) * UNITS[match.group(2).upper()]


def options_of(header):
    """Name, number that the comment says or None, number of the member."""
    text = header.read_text()
    members = {name: number(value) for name, value in MEMBER.findall(text)}
    for comment, name in SETTER.findall(text):
        if members.get(name) is None:
            continue
        said = re.search(r"Default: (" + NUMBER + r")", re.sub(r"\s*///\s*", " ", comment))
        yield name, number(said.group(1)) if said else None, members[name]


def faults(root, documents):
    defaults = {}
    for header in sorted(root.glob("include/refrain/*.h")):
        for name, said, value in options_of(header):
            defaults.setdefault(name, set()).add(value)
            if said is not None and said != value:
                yield f"{header.relative_to(root)}: the comment of `{name}` says {said:g}, its default is {value:g}"
    for document in documents:
        for name, said in re.findall(r"`(\w+)` \((" + NUMBER + r")\)", (root / document).read_text()):
            if name in defaults and number(said) not in defaults[name]:
                yield f"{document}: `{name}` ({said}), the header's default is {' or '.join(f'{d:g}' for d in sorted(defaults[name]))}"


def main():
    root = Path(sys.argv[1])
    documents = sys.argv[2:] or [path.relative_to(root) for path in [root / "README.md", *sorted(root.glob("docs/**/*.md"))]]
    found = list(faults(root, documents))
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
