#!/usr/bin/env python3
"""Compiles and runs the ```cpp snippets of README.md and docs/guide/*.md.

A snippet with `int main` is a program of its own. Any other is the body of a function, after an include of
<refrain/refrain.h> and <torch/torch.h>; its own #include lines move to the top. It passes if it returns. All of these
share one translation unit (torch/torch.h takes ten seconds) and each runs in its own process. Compilers and messages
name the line of the Markdown file.

An HTML comment on the lines before a snippet, invisible to a reader, may say:
  <!-- not compiled -->   skip it
  <!-- continues -->      it follows the snippet before it in that file, in the same function
  <!-- setup: CODE -->    CODE (may span lines) comes first in its function
"""
import argparse
import pathlib
import re
import subprocess
import sys

PROLOGUE = "#include <refrain/refrain.h>\n#include <torch/torch.h>\n#include <cstdlib>\n#include <iostream>\n"
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```[ \t]*$", re.M | re.S)
COMMENTS_BEFORE = re.compile(r"((?:<!--(?:(?!-->).)*-->\s*)+)\Z", re.S)
COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.S)
INCLUDE = re.compile(r"^\s*#\s*include\b.*$", re.M)


class Snippet:
    """C++ text that runs as one program or one function, and where it came from."""

    def __init__(self, where, code, is_program):
        self.where = where  # "README.md:12"
        self.code = code
        self.is_program = is_program


def marked(code, name, line):
    """Code whose compile errors name `name` and `line`."""
    return f'#line {line} "{name}"\n{code}'


def extract(name, text):
    """Snippets of one Markdown text, and the places of those marked `not compiled`."""
    snippets, skipped = [], []
    for fence in FENCE.finditer(text):
        if fence[2] != "cpp":
            continue
        line = text.count("\n", 0, fence.start()) + 2
        where = f"{name}:{line}"
        before = COMMENTS_BEFORE.search(text[: fence.start()].rstrip(" "))
        notes = COMMENT.findall(before[1]) if before else []
        if "not compiled" in notes:
            skipped.append(where)
            continue
        code = marked(fence[3], name, line)
        setup = [note[len("setup:") :].strip() for note in notes if note.startswith("setup:")]
        if setup:
            code = "\n".join(setup) + "\n" + code
        if "continues" in notes:
            if not snippets or snippets[-1].is_program:
                raise SystemExit(f"{where}: `continues`, but no fragment comes before it in {name}")
            snippets[-1].code += code
        else:
            snippets.append(Snippet(where, code, bool(re.search(r"\bint\s+main\s*\(", fence[3]))))
    return snippets, skipped


def fragments_source(snippets):
    """One program that runs fragment number argv[1]."""
    includes, functions, cases = [], [], []
    for i, snippet in enumerate(snippets):
        includes += [m.strip() for m in INCLUDE.findall(snippet.code)]
        body = INCLUDE.sub("", snippet.code)
        functions.append(f"static void snippet_{i}() {{\n{body}\n}}\n")
        cases.append(f"    case {i}: snippet_{i}(); return 0;\n")
    return (
        PROLOGUE
        + "".join(f"{line}\n" for line in dict.fromkeys(includes))
        + "".join(functions)
        + '#line 1 "main"\nint main(int, char** argv) {\n  switch (std::atoi(argv[1])) {\n'
        + "".join(cases)
        + "  }\n  return 2;\n}\n"
    )


def build(compiler, flags, source, text):
    source.write_text(text)
    program = source.with_suffix("")
    objects = source.with_suffix(".o")
    last = [f for f in flags if f.startswith(("-l", "-L", "-Wl"))]
    first = [f for f in flags if f not in last]
    ok = subprocess.run([*compiler, "-O0", *first, "-c", str(source), "-o", str(objects)]).returncode == 0
    ok = ok and subprocess.run([*compiler, str(objects), *last, "-o", str(program)]).returncode == 0
    return program if ok else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--flags", type=pathlib.Path, required=True)
    parser.add_argument("compiler", nargs="+")
    args = parser.parse_args()
    flags = args.flags.read_text().split("\n")[:-1]

    programs, fragments, skipped = [], [], []
    for path in [args.root / "README.md", *sorted((args.root / "docs/guide").glob("*.md"))]:
        if not path.exists():
            continue
        found, left = extract(str(path.relative_to(args.root)), path.read_text())
        programs += [s for s in found if s.is_program]
        fragments += [s for s in found if not s.is_program]
        skipped += left

    runs, failed = [], []
    if fragments:
        built = build(args.compiler, flags, args.work / "fragments.cc", fragments_source(fragments))
        if built:
            runs += [(s, [built, str(i)]) for i, s in enumerate(fragments)]
        else:
            failed.append("the fragments do not compile: the lines are above")
    for i, snippet in enumerate(programs):
        built = build(args.compiler, flags, args.work / f"program_{i}.cc", snippet.code)
        if built:
            runs.append((snippet, [built]))
        else:
            failed.append(f"{snippet.where} does not compile")
    for snippet, command in runs:
        done = subprocess.run(command, cwd=args.work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        print(f"{snippet.where}: {'ok' if done.returncode == 0 else f'exit {done.returncode}'}")
        if done.returncode != 0:
            failed.append(f"{snippet.where} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    print(f"{len(runs)} snippets ran, {len(skipped)} not compiled by request {' '.join(skipped)}")
    for failure in failed:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
