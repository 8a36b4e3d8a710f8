"""Writes the samples beside it: plausible documents of each kind, made up, for tests and for looking at the report."""

import json
from pathlib import Path

HERE = Path(__file__).parent
MIB = 1 << 20
MACHINE = {"processor": "sample, not measured", "cores": 8, "threads": 8, "system": "Linux x86_64", "compiler": "12.2.0",
           "libtorch": "2.13.0", "refrain": "0.1.0"}
GPT = {"batch": 8, "seq": 256, "depth": 12, "width": 256, "vocab": 256, "dropout": 0.1, "seed": 0}


def write(name, kind, model, config, **members):
    document = {"kind": kind, "version": 1, "model": model, "config": config, "machine": MACHINE, **members}
    (HERE / f"sample_{name}.json").write_text(json.dumps(document, separators=(",", ":")).replace('},{', '},\n{') + "\n")


def strategy(name, after_forward, peak, ms, plain_ms, ops):
    return {"name": name, "after_forward_bytes": int(after_forward * MIB) + 904, "peak_bytes": int(peak * MIB) + 3912,
            "step_ms_median": ms, "step_ms_min": round(ms * 0.972, 4), "step_ms_spread": round(ms * 0.0087, 4), "added_ms_median": round(ms - plain_ms, 4),
            "replayed_ops": ops, "bit_equal": True}


def bench():
    rows = [("none", 412.3, 428.1, 812.41, 0), ("per_block", 36.2, 74.9, 1031.07, 492), ("selective", 171.6, 196.2, 861.9, 276),
            ("sqrt_segments", 29.8, 108.4, 1027.3, 480), ("rerun", 36.2, 76.3, 1078.62, 540), ("offload", 36.4, 83.7, 934.15, 0),
            ("budget:150MiB", 124.0, 149.6, 874.8, 214), ("per_half_block", 70.1, 97.5, 1012.9, 470)]
    write("bench", "bench", "gpt", {**GPT, "iters": 15, "warmup": 3},
          strategies=[strategy(n, a, p, ms, 812.41, ops) for n, a, p, ms, ops in rows])


class Step:
    """A step of a made-up GPT, as its allocator would see it."""

    def __init__(self):
        self.level = {"parameter": 38 * MIB, "optimizer_state": 76 * MIB, "buffer": 3 * MIB, "input": MIB // 2}
        self.t = 0.0
        self.points, self.kinds, self.phases = [], [], []
        self.top = None
        self.log()

    def log(self):
        total = sum(self.level.values())
        self.points.append([round(self.t, 1), total])
        self.kinds.append(dict(self.level))
        if self.top is None or total > self.top[1]:
            self.top = (round(self.t, 1), total, dict(self.level))

    def change(self, us, **kinds):
        self.t += us
        for kind, mib in kinds.items():
            self.level[kind] = self.level.get(kind, 0) + round(mib * 1024) * 1024
        self.log()

    def phase(self, name, begin):
        self.phases.append({"name": name, "begin_us": round(begin, 1), "end_us": round(self.t, 1)})


def timeline(strategy_name):
    step, per_block = Step(), strategy_name == "per_block"
    for _ in range(12):
        for _ in range(6):
            step.change(1700, temporary=5.6)
            step.change(900, workspace=2.3)
            step.change(300, workspace=-2.3)
            if not per_block:
                step.change(100, activation_kept=5.6, temporary=-5.6)
            else:
                step.change(100, temporary=-5.6)
        step.change(800, activation_kept=2.4)
    step.change(2600, activation_kept=8.2)
    step.phase("forward", 0)
    begin = step.t
    for _ in range(12):
        if per_block:
            start = step.t
            for _ in range(6):
                step.change(2700, recomputed=5.6)
            step.phase("recompute", start)
        kept = "recomputed" if per_block else "activation_kept"
        for _ in range(6):
            step.change(3100, temporary=6.1)
            step.change(1800, gradient=38 / 72)
            step.change(900, temporary=-6.1, **{kept: -5.6})
        step.change(500, activation_kept=-2.4)
    step.change(700, activation_kept=-8.2)
    step.phase("backward", begin)
    begin = step.t
    for _ in range(14):
        step.change(900, temporary=2.7)
        step.change(700, temporary=-2.7)
    step.phase("optimizer", begin)
    top = [("blocks.5.attention.softmax", "aten::_softmax", [8, 8, 256, 256]), ("blocks.5.mlp.fc", "aten::addmm", [8, 256, 1024]),
           ("blocks.5.mlp.gelu", "aten::gelu", [8, 256, 1024]), ("blocks.5.attention.qkv", "aten::addmm", [8, 256, 768]),
           ("head", "aten::_log_softmax", [2048, 256])]
    kind = "recomputed" if per_block else "activation_kept"
    t, total, by_kind = step.top
    before = 124 * MIB
    # the first step of a process: pages that were touched stay
    resident, highest = [], 0
    for when, level in step.points[::12] + [[t, total], step.points[-1]]:
        highest = max(highest, level)
        resident.append([when, before + 6 * MIB + highest])
    resident.sort()
    write(f"timeline_{strategy_name}", "timeline", "gpt", GPT, strategy=strategy_name, base_bytes=step.points[0][1], peak_bytes=total,
          phases=step.phases, points=step.points, resident_before_bytes=before, resident=resident,
          kinds={k: [[p[0], row.get(k, 0)] for p, row in zip(step.points, step.kinds)] for k in sorted({k for r in step.kinds for k in r})},
          peak={"t_us": t, "bytes": total, "by_kind": {k: v for k, v in by_kind.items() if v},
                "top": [{"bytes": 4 * n, "kind": kind, "op": op, "module": m, "phase": "recompute" if per_block else "forward", "sizes": s}
                        for m, op, s in top for n in [eval("*".join(map(str, s)))]]
                + [{"bytes": 1048576, "kind": "parameter", "op": None, "module": "blocks.0.mlp.fc.weight", "phase": None, "sizes": [256, 1024]}]},
          allocations=1934, measured_overhead=0.0213)


def breakdown():
    fixed = 41984000
    rows = []
    for batch in (32, 64, 128, 256, 512, 1024):
        activations = 163840 * 4 * batch // 2
        rows.append({"batch": batch,
                     "estimated": {"parameters": fixed, "gradients": fixed, "optimizer_states": 2 * fixed, "activations": activations},
                     "measured": {"parameters": fixed, "gradients": fixed, "optimizer_states": 2 * fixed + 128,
                                  "activations": activations + 24 * batch, "temporaries": 16384 * batch // 2 + 4096000}})
    write("breakdown", "breakdown", "mlp", {"depth": 10, "width": 1024}, optimizer="adam", rows=rows, crossover_batch=512.4)


def depths():
    rows = [{"depth": d, "strategies": [strategy("none", 4.1 * d, 4.2 * d + 6, 9.3 * d, 9.3 * d, 0),
                                        strategy("sqrt_segments", 8.2 * d ** 0.5, 9.9 * d ** 0.5 + 6, 12.1 * d, 9.3 * d, 3 * d),
                                        strategy("per_layer", 4.1 * d, 4.3 * d + 6, 12.4 * d, 9.3 * d, 3 * d),
                                        strategy("offload", 4.1, 9.0 + 0.3 * d, 11.0 * d, 9.3 * d, 0)]} for d in (10, 20, 40, 80)]
    write("depths", "depths", "mlp", {"batch": 256, "width": 1024}, rows=rows)


def segments():
    n, layer = 64, 4.0

    def row(k, after, peak, ms, predicted=None):
        return {"segments": k, "after_forward_bytes": int(after * MIB), "peak_bytes": int(peak * MIB), "step_ms_median": ms,
                "predicted_peak_bytes": int((predicted or peak) * MIB)}

    rows = [row(k, layer * k, layer * (k + n / k) + 5.3, 610 + 4.5 * (k % 3), layer * (k + n / k) + 4.1) for k in (1, 2, 4, 6, 8, 12, 16, 32, 64)]
    write("segments", "segments", "mlp", {"batch": 256, "depth": n, "width": 1024}, layers=n, sqrt_segments=8, rows=rows,
          plain=row(0, layer * n, layer * n + 6.2, 471.25, layer * n + 6.2), per_layer=row(n, layer * n, layer * n + 9.4, 655.5, layer * n + 9.4))


def limits():
    peak, plain_ms = 428 * MIB + 3912, 812.41
    parts = {"h_dtr": {100: (0.008, 0, 0), 90: (0.012, 15, 15), 80: (0.021, 28, 30), 70: (0.034, 37, 43), 60: (0.055, 45, 57), 50: (0.091, 59, 84),
                       40: (0.148, 74, 120), 30: (0.269, 111, 182)},
             "lru": {100: (-0.006, 0, 0), 90: (0.024, 21, 34), 80: (0.058, 40, 77), 70: (0.119, 66, 148), 60: (0.274, 120, 391), 50: (0.862, 413, 1210)}}
    rows = []
    for percent in (100, 90, 80, 70, 60, 50, 40, 30, 20):
        for name, seen in parts.items():
            row = {"percent": percent, "heuristic": name, "limit_bytes": peak * percent // 100, "fits": percent in seen}
            if percent in seen:
                overhead, evictions, recomputes = seen[percent]
                row |= {"peak_bytes": peak * percent // 100 - 9032, "step_ms_median": round(plain_ms * (1 + overhead), 4),
                        "step_ms_spread": 7.125, "added_ms_median": round(plain_ms * overhead, 4), "overhead": overhead, "evictions": evictions,
                        "evicted_bytes": evictions * 4 * MIB, "recomputes": recomputes, "recompute_ms": recomputes * 1.5,
                        "choosing_ms": recomputes * 0.013, "bit_equal": True}
            else:
                row |= {"refused": "time" if name == "lru" and percent == 40 else "memory", "missing_bytes": (35 - percent) % 30 * MIB + 77}
            rows.append(row)
    write("limits", "limits", "gpt", {**GPT, "iters": 5, "warmup": 1, "max_overhead": 10}, base_bytes=38 * MIB,
          plain={"peak_bytes": peak, "step_ms_median": plain_ms, "step_ms_spread": 6.25}, rows=rows,
          published=[{"method": "DTR", "model": "Transformer", "limit_gb": 4, "plain_gb": 9.87, "overhead": 0.19,
                      "source": "Kirisame et al., \"Dynamic Tensor Rematerialization\", ICLR 2021: prototype in PyTorch, on a GPU",
                      "nearest_percent": 40, "nearest_overhead": 0.148}])


def pareto():
    peak, plain_ms = 428 * MIB + 3912, 812.41

    def series(name, points, role="planned", **more):
        return {"name": name, "role": role, "points": [{"peak_bytes": int(part * peak), "added_ms": round(plain_ms * overhead, 4), "overhead": overhead,
                                                        "recomputed_ops": int(900 * overhead), **more} for part, overhead in points]}

    write("pareto", "pareto", "gpt", {**GPT, "points": 9}, plain={"peak_bytes": peak, "step_ms_median": plain_ms}, floor_bytes=41 * MIB + 512, series=[
        series("refrain", [(1, 0.0), (0.9, 0.004), (0.8, 0.011), (0.7, 0.02), (0.6, 0.034), (0.5, 0.058), (0.4, 0.096), (0.3, 0.161), (0.2, 0.244), (0.135, 0.392)]),
        series("refrain, measured", [(0.8, 0.013), (0.6, 0.037), (0.4, 0.101), (0.2, 0.251)], "measured", bit_equal=True),
        series("knapsack", [(1, 0.0), (0.83, 0.03), (0.69, 0.082), (0.52, 0.14), (0.41, 0.22), (0.33, 0.31)]),
        series("per_block", [(0.62, 0.12), (0.44, 0.2), (0.21, 0.291)]),
        series("greedy", [(1, 0.0), (0.8, 0.041), (0.6, 0.15), (0.4, 0.62), (0.35, 2.35)]),
        series("lower bound", [(1, 0.0), (0.8, 0.009), (0.6, 0.028), (0.4, 0.07), (0.2, 0.16)], "bound")])


def max_batch():
    rows = []
    for name, most, fixed, slope in (("none", 21, 96, 19.2), ("selective", 43, 96, 9.35), ("per_stage", 58, 96, 7.0), ("per_block", 74, 96, 5.5)):
        peak = lambda b: int((fixed + slope * b) * MIB)
        trials = [{"batch": b, "fits": b <= most, "peak_bytes": peak(b) if b <= most else None}
                  for b in sorted({1, 2, 4, 8, 16, 32, 64, most, most + 1}) if b <= 2 * most]
        rows.append({"strategy": name, "max_batch": most, "peak_bytes": peak(most), "next_peak_bytes": peak(most + 1),
                     "factor": round(most / 21, 4), "trials": trials})
    write("max_batch", "max_batch", "resnet50", {"image_size": 64, "classes": 10}, limit_bytes=512 * MIB, rows=rows)


def advice():
    candidates = [{"strategy": s, "peak_bytes": int(p * MIB), "overhead": o, "max_batch": b, "fits": p <= 400, "peak_is_predicted": p > 400} for s, p, o, b in
                  (("none", 545.6, 0.0, 3), ("selective", 313.7, 0.061, 7), ("per_block", 192.4, 0.269, 17), ("sqrt_segments", 225.9, 0.2645, 12))]
    write("advice", "advice", "gpt", GPT, limit_bytes=400 * MIB, fits_plainly=False,
          choice={**candidates[1], "command": "refrain train gpt --batch 8 --seq 256 --strategy selective --memory-limit 400MiB",
                  "code": "auto options = refrain::CheckpointOptions().policy(refrain::save_matmuls());\n"
                          "for (auto& block : blocks) h = refrain::checkpoint(options, block, h);"},
          candidates=candidates,
          reasons=["The baseline needs 545.6 MiB, 145.6 MiB more than the limit.",
                   "selective is the fastest of the three strategies that fit: 6 % added, where per_block adds 27 %.",
                   "per_block leaves the most room: batches of up to 17."])


if __name__ == "__main__":
    bench(), timeline("none"), timeline("per_block"), breakdown(), depths(), segments(), limits(), pareto(), max_batch(), advice()
