#!/usr/bin/env python3
"""One file of the sources names the tape's dispatch key."""
import sys
from pathlib import Path

KEY = "DispatchKey::Fake"
HOME = "src/intercept/key.h"


def main():
    root = Path(sys.argv[1])
    found = {str(path.relative_to(root)) for top in ("src", "include") for path in (root / top).rglob("*.*") if KEY in path.read_text()}
    if found != {HOME}:
        sys.exit(f"{KEY} stands in {', '.join(sorted(found))}; expected in {HOME} only: use kTapeKey, set_tape_included, UnseenScope")


if __name__ == "__main__":
    main()
