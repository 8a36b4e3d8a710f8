#!/usr/bin/env python3
"""Whether src keeps to src/LAYERS: which folder may include which, no cycle of folders, no units that include each other.

    tests/lint/layers_test.py [--src DIR]

A unit is a header with its .cc. Exit codes: 0 it does; 1 it does not: each line says where and what is allowed; 2 src/LAYERS cannot be read.
"""

import argparse
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def read_layers(path):
    layers = {}
    with open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.split("#")[0].strip()
            if not line:
                continue
            name, colon, allowed = line.partition(":")
            if not colon or name in layers:
                sys.exit(f"{path}:{number}: found `{line}`; expected `folder: folders it may include`, each folder once")
            layers[name] = allowed.split()
    for name, allowed in layers.items():
        for other in allowed:
            if other not in layers:
                print(f"{path}: `{name}` may include `{other}`, which has no line of its own", file=sys.stderr)
                sys.exit(2)
    return layers


def read_includes(src):
    """[(file, included file)], both relative to src."""
    found = []
    for folder, _, names in os.walk(src):
        for name in sorted(names):
            if not name.endswith((".h", ".cc")):
                continue
            path = os.path.join(folder, name)
            with open(path) as file:
                for included in INCLUDE.findall(file.read()):
                    if os.path.exists(os.path.join(src, included)):
                        found.append((os.path.relpath(path, src), included))
    return found


def cycles(graph):
    """Strongly connected sets of more than one node, by Tarjan."""
    index, low, stack, on_stack, result = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in on_stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            found = []
            while True:
                found.append(stack.pop())
                on_stack.remove(found[-1])
                if found[-1] == node:
                    break
            if len(found) > 1:
                result.append(sorted(found))

    sys.setrecursionlimit(10000)
    for node in sorted(graph):
        if node not in index:
            visit(node)
    return result


def graph_of(pairs, of):
    graph = {}
    for a, b in pairs:
        graph.setdefault(of(a), set())
        if of(a) != of(b):
            graph[of(a)].add(of(b))
    return graph


def check(src):
    layers = read_layers(os.path.join(src, "LAYERS"))
    includes = read_includes(src)
    wrong = []
    for folder in sorted({name for name in os.listdir(src) if os.path.isdir(os.path.join(src, name))} - layers.keys()):
        wrong.append(f"src/{folder} has no line in src/LAYERS")
    for file, included in includes:
        folder, other = file.split("/")[0], included.split("/")[0]
        if folder != other and folder in layers and other not in layers[folder]:
            wrong.append(f"src/{file} includes {included}: {folder} may include {' '.join(layers[folder]) or 'nothing'}")
    for what, of in (("folders", lambda file: file.split("/")[0]), ("units", lambda file: os.path.splitext(file)[0])):
        for found in cycles(graph_of(includes, of)):
            wrong.append(f"{what} that include each other: {' '.join(found)}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", default=os.path.join(ROOT, "src"))
    wrong = check(parser.parse_args().src)
    print("\n".join(wrong) if wrong else "layers: as src/LAYERS says")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
