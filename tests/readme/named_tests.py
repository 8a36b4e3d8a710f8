#!/usr/bin/env python3
"""Checks that every test that a document names, as `Suite.Name`, is in the test sources.

named_tests.py ROOT DOCUMENT...   paths of documents relative to ROOT
"""
import pathlib
import re
import sys

CODE = re.compile(r"`([^`\n]+)`")
NAME = re.compile(r"([A-Z]\w*)\.([A-Z]\w*)")
TEST = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)", re.M)


def named(text):
    """(line, "Suite.Name") of every test that a Markdown text names."""
    for number, line in enumerate(text.split("\n"), 1):
        for code in CODE.findall(line):
            if NAME.fullmatch(code):
                yield number, code


def defined(root):
    return {f"{suite}.{name}" for path in sorted((root / "tests").rglob("*.cc")) for suite, name in TEST.findall(path.read_text())}


def missing(root, documents):
    """One line for each test that does not exist, and for each document that names none."""
    tests = defined(root)
    for document in documents:
        names = list(named((root / document).read_text()))
        if not names:
            yield f"{document}: names no test"
        for line, name in names:
            if name not in tests:
                yield f"{document}:{line}: there is no test {name}"


def main():
    problems = list(missing(pathlib.Path(sys.argv[1]), sys.argv[2:]))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
