#!/usr/bin/env python3
"""Runs one file of these tests with the library of the build.

    run.py LIBRARY FILE

Exit codes: unittest's; 77 where this Python has no torch, or another than the library was built for: skipped.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    library, name = os.path.abspath(sys.argv[1]), sys.argv[2]
    try:
        import torch  # noqa: F401
    except ImportError:
        print("no torch in this Python: skipped")
        return 77
    sources = str(HERE.parent.parent / "python")
    os.environ["REFRAIN_LIBRARY"] = library
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sources, os.environ.get("PYTHONPATH")]))
    sys.path[:0] = [sources, str(HERE)]
    try:
        import refrain  # noqa: F401
    except ImportError as error:
        if "was built for" not in str(error):
            raise
        print(f"{error}: skipped")
        return 77
    import unittest

    loaded = unittest.defaultTestLoader.loadTestsFromName(Path(name).stem)
    return 0 if unittest.TextTestRunner(verbosity=1).run(loaded).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
