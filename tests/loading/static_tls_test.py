#!/usr/bin/env python3
"""The library takes little of the static thread-local memory that all libraries of a process share, and loads into a program that was not linked to it."""
import ctypes
import re
import subprocess
import sys

MOST_BYTES = 1024


def tls_bytes(library):
    """The size of the library's TLS segment, 0 if it has none."""
    headers = subprocess.run(["readelf", "-lW", library], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in headers.splitlines() if re.match(r"\s*TLS\s", line)]
    # TLS Offset VirtAddr PhysAddr FileSiz MemSiz Flg Align
    return sum(int(row[5], 16) for row in rows)


def main():
    library = sys.argv[1]
    size = tls_bytes(library)
    print(f"{library}: {size} bytes of thread-local memory")
    if not 0 < size < MOST_BYTES:
        sys.exit(f"found {size} bytes in its TLS segment, expected fewer than {MOST_BYTES}: keep large things on the heap, as thread_owned does")
    loaded = ctypes.CDLL(library)
    loaded._ZN7refrain9self_testEv()


if __name__ == "__main__":
    main()
