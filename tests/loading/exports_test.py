"""The symbols that librefrain.so exports are those of exports.txt: an accidental export, or the removal of a public one, shows.

  exports_test.py LIBRARY            compares
  exports_test.py LIBRARY --write    writes exports.txt
"""

import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("exports.txt")


def exported(library):
    """Names without parameter lists, sorted: what a header declares. Copies of templates and inline functions of other libraries are weak."""
    lines = subprocess.run(["nm", "-DC", "--defined-only", library], capture_output=True, text=True, check=True).stdout.splitlines()
    names, foreign = set(), set()
    for line in lines:
        kind, name = re.match(r"\w+ (\w) (.*)", line).groups()
        name = re.sub(r"\[abi:\w+\]", "", name)
        if not re.match(r"(?:(?:vtable|typeinfo|typeinfo name|VTT|guard variable) for )?refrain::|refrain_\w+$", name):
            if kind not in "VWu" and name not in ("_edata", "_end", "__bss_start"):  # the linker's
                foreign.add(name)
            continue
        if kind in "VWu" and "<" in name and "TorchError" not in name:
            continue  # a template's copy
        names.add(re.sub(r"\(.*", "", name))
    return sorted(names), sorted(foreign)


def main():
    names, foreign = exported(sys.argv[1])
    if sys.argv[2:] == ["--write"]:
        LIST.write_text("\n".join(names) + "\n")
        print(f"{len(names)} names")
        return 0
    expected = LIST.read_text().splitlines()
    faults = [f"exported, not in {LIST.name}: {name}" for name in names if name not in expected]
    faults += [f"in {LIST.name}, not exported: {name}" for name in expected if name not in names]
    faults += [f"exported, and not of this library: {name}" for name in foreign]
    for fault in faults:
        print(fault)
    if faults:
        print(f"Is it meant? Then run  {Path(__file__).relative_to(Path.cwd()) if Path(__file__).is_relative_to(Path.cwd()) else __file__} LIBRARY --write")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
