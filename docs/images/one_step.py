#!/usr/bin/env python3
"""Draws one-step-four-ways.png: the memory of one training step without Refrain and in its four ways, as `refrain timeline` recorded it.

  docs/images/one_step.py      needs build/bin/refrain and Chromium (scripts/setup --dev)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["gpt"]
MIB = 2**20
WAYS = [("without", ["--strategy", "none"], "#8a8f98"),
        ("region per block", ["--strategy", "per_block"], "#2563eb"),
        ("policy: products kept", ["--strategy", "selective"], "#7c3aed"),
        ("budget 0.3", ["--strategy", "budget:0.3"], "#d97706"),
        ("cap at 60 %", None, "#059669")]
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 960, 420, 64, 28, 46, 190


def record(options):
    done = subprocess.run([ROOT / "build/bin/refrain", "timeline", *MODEL, "--iters", "3", "--warmup", "4", "--json", "-", *options],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"one_step: {done.stderr.strip()}")
    return json.loads(done.stdout)


def levels(document):
    """[(ms, MiB)] of the allocator's level over the step."""
    return [(t_us / 1e3, level / MIB) for t_us, level in document["points"]]


def main():
    documents = {}
    for name, options, _ in WAYS:
        if options is None:
            limit = round(0.6 * documents["without"]["peak"]["bytes"])
            options = ["--strategy", "auto", "--memory-limit", str(limit)]
        documents[name] = record(options)
    lines = {name: levels(document) for name, document in documents.items()}
    ms = max(points[-1][0] for points in lines.values())
    mib = 1.06 * max(level for points in lines.values() for _, level in points)
    x = lambda value: LEFT + value / ms * (WIDTH - LEFT - RIGHT)
    y = lambda value: HEIGHT - BOTTOM - value / mib * (HEIGHT - TOP - BOTTOM)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>']
    step = 50 if mib > 100 else 10
    for value in range(0, int(mib) + 1, step):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e5e7eb"/>'
                     f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#374151">{value}</text>')
    parts.append(f'<text x="14" y="18" fill="#374151">MiB of tensors</text>'
                 f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end" fill="#374151">ms of one training step: forward, backward, optimizer</text>')
    for tick in range(0, int(ms) + 1, 50 if ms > 120 else 20):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 28}" text-anchor="middle" fill="#6b7280">{tick}</text>')
    for i, (name, _, color) in enumerate(WAYS):
        points = lines[name]
        path = f"M{x(points[0][0]):.1f},{y(points[0][1]):.1f}" + "".join(f"H{x(t):.1f}V{y(level):.1f}" for t, level in points[1:])
        peak = max(level for _, level in points)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8" opacity="0.9"/>')
        at = TOP + 24 + 46 * i
        parts.append(f'<line x1="{WIDTH - RIGHT + 14}" x2="{WIDTH - RIGHT + 38}" y1="{at}" y2="{at}" stroke="{color}" stroke-width="3"/>'
                     f'<text x="{WIDTH - RIGHT + 46}" y="{at + 4}" fill="#111827">{name}</text>'
                     f'<text x="{WIDTH - RIGHT + 46}" y="{at + 20}" fill="#6b7280">{peak:.0f} MiB, {points[-1][0]:.0f} ms</text>')
    parts.append("</svg>")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(f'<!doctype html><meta charset="utf-8"><style>body{{margin:0}}</style>{"".join(parts)}')
        subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}",
                        "--force-device-scale-factor=1.5", f"--screenshot={ROOT / 'docs/images/one-step-four-ways.png'}", page.as_uri()],
                       check=True, capture_output=True)
    for name, points in lines.items():
        print(f"{name}: peak {max(level for _, level in points):.1f} MiB, {points[-1][0]:.0f} ms")


if __name__ == "__main__":
    main()
