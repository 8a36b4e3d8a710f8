"""Memory budgets beside their peers: bench/peers/run --budgets.

Peers: torch.utils.checkpoint per block and selective; torch.compile with `activation_memory_budget`, each budget in a process of
its own with empty caches. Ours: refrain::MemoryBudget at the fractions, and for each peer a budget of as many bytes as that peer
peaks at, so that steps are compared at equal measured peaks.
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile

import results_file
from stepping import (MIB, ROOT, Failure, Plan, check_same_model, config_of, minus, note, number, ratio_with_spread, spread,
                      start_refrain, start_torch, table, take_turns, versions_of)

ROUNDS = {"blocks-small": 15, "blocks": 7, "resnet50": 7, "unet": 7}
COMPILED = {"inductor": (1.0, 0.7, 0.5, 0.3, 0.0), "aot_eager": (0.7, 0.5, 0.3, 0.0)}
FRACTIONS = (0.7, 0.5, 0.3, 0.0)
# where our step is to be faster than torch.utils.checkpoint's at its peak
TARGETS = ("blocks", "resnet50")


def torch_modes(model):
    return ["checkpoint", "selective"] + (["checkpoint-all", "selective-all"] if model == "resnet50" else [])


class Field:
    """All plans of one model, and what was learnt of each before the rounds."""

    def __init__(self):
        self.plans, self.learnt, self.peers, self.caches = {}, {}, [], []

    def add(self, peer, mode, settle, **learnt):
        plan = Plan(peer, mode)
        self.plans[plan.key] = plan
        self.learnt[plan.key] = learnt
        if mode not in ("none", "plain"):
            learnt.update(peer.ask(f"check {mode}"))
        learnt["expected_peak_bytes"] = max(plan.run()["peak_bytes"] for _ in range(max(1, settle)))
        return plan

    def plain(self, plan):
        return self.plans["refrain/none" if plan.peer.name == "refrain" else "torch/plain"]


def add_torch(field, torch, model, options):
    for mode in ["plain"] + torch_modes(model):
        field.add(torch, mode, options.warmup)
    for backend, budgets in COMPILED.items():
        for budget in budgets if backend in options.backends else ():
            caches = tempfile.mkdtemp(prefix="refrain-peers-")
            field.caches.append(caches)
            peer = start_torch(model, options, TORCHINDUCTOR_CACHE_DIR=caches)
            field.peers.append(peer)
            mode = f"{backend}:{budget}"
            note(f"{model}: compiling {mode}")
            first = peer.ask(f"first {mode}")
            check_same_model((field.peers[0], peer))
            field.add(peer, mode, options.warmup, **first)


def add_ours(field, refrain, options):
    """@return for the key of each peer the key of our plan of at most its peak, or None if there is none."""
    others = list(field.plans)
    for mode in ["none"] + [s for s in ("per_block", "selective") if s in refrain.hello["strategies"]]:
        others.append(field.add(refrain, mode, options.warmup).key)
    most = field.learnt["refrain/none"]["expected_peak_bytes"]
    counterparts = {}

    def add_budget(mode):
        if f"refrain/{mode}" in field.plans:
            return True
        plan = refrain.ask(f"plan {mode}")
        if plan["fits"]:
            field.add(refrain, mode, options.warmup, **plan, **refrain.ask(f"first {mode}"))
        return plan["fits"]

    for fraction in FRACTIONS:
        add_budget(f"budget:{fraction}")
    for key in others:
        if key in ("refrain/none", "torch/plain"):
            continue
        peak = field.learnt[key]["expected_peak_bytes"]
        mode = "none" if peak >= most else f"budget:{peak}"
        counterparts[key] = f"refrain/{mode}" if mode == "none" or add_budget(mode) else None
    return counterparts


def measure(model, options, generator):
    """@return the model as it stands in the file, and versions and config of its run."""
    rounds = options.iters or ROUNDS[model]
    field = Field()
    try:
        refrain, torch = start_refrain(model, options), start_torch(model, options)
        field.peers += [refrain, torch]
        check_same_model(field.peers)
        add_torch(field, torch, model, options)
        counterparts = add_ours(field, refrain, options)
        load = os.getloadavg()[0]
        others_share = take_turns(model, list(field.plans.values()), field.peers, rounds, options)
        hellos = {p.name: p.hello for p in (refrain, torch)}
    finally:
        for peer in field.peers:
            peer.close()
        for caches in field.caches:
            shutil.rmtree(caches, ignore_errors=True)
    result = {
        "model": model,
        "rounds": rounds,
        "input_shape": refrain.hello["input_shape"],
        "load_before_rounds": load,
        "other_processes_cpu_share": others_share,
        "warnings": [],
        "plans": [],
        "comparisons": [],
    }
    if others_share > 0.05:
        result["warnings"].append(f"other processes used {others_share:.0%} of the processors: do not trust the times")
    for key, plan in field.plans.items():
        summary = plan.summary(field.plain(plan))
        summary.update(field.learnt[key])
        summary["overhead"] = summary["added_ms_median"] / statistics.median(field.plain(plan).column("ms"))
        result["plans"].append(summary)
    for key, ours in counterparts.items():
        result["comparisons"].append(compare(field, field.plans[key], ours and field.plans[ours], generator))
    return result, versions_of(hellos), config_of(hellos, options)


def compare(field, theirs, ours, generator):
    out = {"against": theirs.key, "their_peak_bytes": max(theirs.column("peak_bytes")), "ours": ours and ours.key}
    if ours is None:
        return out
    added, theirs_added = minus(ours, field.plain(ours)), minus(theirs, field.plain(theirs))
    return out | {
        "our_peak_bytes": max(ours.column("peak_bytes")),
        "their_ms_median": statistics.median(theirs.column("ms")),
        "our_ms_median": statistics.median(ours.column("ms")),
        "their_added_ms_median": statistics.median(theirs_added),
        "our_added_ms_median": statistics.median(added),
        "step_ratio": ratio_with_spread(ours.column("ms"), theirs.column("ms"), generator),
        "added_time_ratio": ratio_with_spread(added, theirs_added, generator),
    }


def targets(result):
    """What the project asks. A figure that could not be measured does not meet its target."""
    out = []
    for c in result["comparisons"] if result["model"] in TARGETS else []:
        runtime, _, mode = c["against"].partition("/")
        if runtime != "torch" or mode not in torch_modes(result["model"]):
            continue
        found = c["step_ratio"]["median"] if c["ours"] else None
        out.append({"what": f"step under a budget / torch {mode} at its peak", "found": found, "limit": 1.0,
                    "met": found is not None and found < 1.0})
        over = c["our_peak_bytes"] - c["their_peak_bytes"] if c["ours"] else None
        out.append({"what": f"bytes at the peak over those of torch {mode}", "found": over, "limit": 0,
                    "met": over is not None and over <= 0})
    return out


# Output ---------------------------------------------------------------------------------------------------------------


def name_of(plan):
    kind, _, amount = plan["name"].partition(":")
    if plan["runtime"] == "torch":
        return f"torch.compile {kind} {amount}" if amount else f"torch {kind}"
    if kind != "budget":
        return f"refrain {kind}"
    return f"refrain budget {amount}" if "." in amount else f"refrain budget {int(amount) / MIB:.2f} MiB"


def same_bits(plan):
    if "gradients_bit_equal" not in plan:
        return ""
    if plan["gradients_bit_equal"]:
        return "yes" if plan["buffers_bit_equal"] else "gradients only"
    return f"no, {plan['gradients_relative_difference']:.0e}" if "gradients_relative_difference" in plan else "NO"


def plans_table(result, markdown):
    rows = [[result["model"], "peak MiB", "after forward MiB", "ms (quartiles)", "added ms", "added", "first step s", "same bits"]]
    for p in sorted(result["plans"], key=lambda p: (p["runtime"] != "torch", -p["peak_bytes"])):
        low, high = p["step_ms_quartiles"]
        plain = p["name"] in ("none", "plain")
        rows.append([name_of(p), number(p["peak_bytes"] / MIB), number(p["after_forward_bytes"] / MIB),
                     f"{number(p['step_ms_median'], 1)} ({number(low, 1)}-{number(high, 1)})",
                     "" if plain else number(p["added_ms_median"], 1), "" if plain else f"{p['overhead']:.0%}",
                     number(p["first_ms"] / 1e3, 2) if "first_ms" in p else "", same_bits(p)])
    return table(rows, markdown)


def comparisons_table(result, markdown):
    names = {f"{p['runtime']}/{p['name']}": name_of(p) for p in result["plans"]}
    rows = [[f"{result['model']}: at the peak of", "ours", "peaks MiB: theirs, ours", "ms: theirs, ours", "added ms: theirs, ours",
             "our step / theirs (quartiles)"]]
    for c in result["comparisons"]:
        theirs = number(c["their_peak_bytes"] / MIB)
        if c["ours"] is None:
            rows.append([names[c["against"]], "no plan", theirs, "", "", ""])
            continue
        rows.append([names[c["against"]], names[c["ours"]], f"{theirs}, {number(c['our_peak_bytes'] / MIB)}",
                     f"{number(c['their_ms_median'], 1)}, {number(c['our_ms_median'], 1)}",
                     f"{number(c['their_added_ms_median'], 1)}, {number(c['our_added_ms_median'], 1)}",
                     spread(c["step_ratio"]).replace("quartiles ", "")])
    return table(rows, markdown)


def losses(result):
    """Peers that we are not faster than at their peak."""
    names = {f"{p['runtime']}/{p['name']}": name_of(p) for p in result["plans"]}
    for c in result["comparisons"]:
        if c["ours"] is None:
            yield f"{names[c['against']]}: no plan peaks as low as its {number(c['their_peak_bytes'] / MIB)} MiB"
        elif c["step_ratio"]["median"] >= 1.0:
            yield (f"{names[c['against']]}: {number(c['their_ms_median'], 1)} ms, ours {number(c['our_ms_median'], 1)} ms "
                   f"at the same peak, ratio {spread(c['step_ratio'])}")
        if c["ours"] and c["our_peak_bytes"] > c["their_peak_bytes"]:
            yield f"{names[c['against']]}: ours peaks {c['our_peak_bytes'] - c['their_peak_bytes']} bytes higher"


def report(data, markdown):
    bullet = "- " if markdown else "  "
    out = []
    for result in data["models"]:
        m, config, versions = (results_file.of(data, result, name) for name in ("machine", "config", "versions"))
        out += [f"{result['model']}, input {result['input_shape']}: {m['processor']}, {m['cores']} cores, "
                f"{config['threads']} thread(s); torch {versions['torch']}; {results_file.of(data, result, 'date')[:10]}; "
                f"{result['rounds']} rounds; other processes used {result['other_processes_cpu_share']:.0%} of the processors", "",
                plans_table(result, markdown), "", comparisons_table(result, markdown), ""]
        out += [f"{bullet}TARGET MISSED: {t['what']}: found {number(t['found'])}, expected below {number(t['limit'])}"
                for t in targets(result) if not t["met"]]
        out += [f"{bullet}WARNING: {w}" for w in result["warnings"]]
        out += ["", "Where we lose:"] + ([f"{bullet}{loss}" for loss in losses(result)] or [f"{bullet}nowhere in this run"]) + [""]
    return "\n".join(out)


def pareto_document(data, result):
    """Kind `pareto` of docs/design/report.md."""
    def series(name, wanted):
        chosen = [p for p in result["plans"] if "gradients_bit_equal" in p and wanted(p)]
        points = [{"peak_bytes": p["peak_bytes"], "added_ms": p["added_ms_median"], "overhead": p["overhead"],
                   "bit_equal": p["gradients_bit_equal"]} for p in chosen]
        return {"name": name, "role": "measured", "points": points}

    def is_torch(prefixes):
        return lambda p: p["runtime"] == "torch" and p["name"].startswith(prefixes)

    plain = next(p for p in result["plans"] if p["name"] == "none")
    all_series = [series("refrain MemoryBudget", lambda p: p["runtime"] == "refrain" and p["name"].startswith("budget:")),
                  series("refrain regions", lambda p: p["runtime"] == "refrain" and not p["name"].startswith("budget:")),
                  series("torch.utils.checkpoint", is_torch(("checkpoint", "selective")))]
    all_series += [series(f"torch.compile, {backend}", is_torch(backend)) for backend in COMPILED]
    machine = {name: value for name, value in results_file.of(data, result, "machine").items() if not name.startswith("load_")}
    return {"kind": "pareto", "version": 1, "model": f"{result['model']}: beside peers", "machine": machine,
            "config": {"threads": results_file.of(data, result, "config")["threads"], "rounds": result["rounds"]},
            "plain": {"peak_bytes": plain["peak_bytes"], "step_ms_median": plain["step_ms_median"]},
            "series": [s for s in all_series if s["points"]]}


def write_html(data, tool, path):
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, result in enumerate(data["models"]):
            files.append(os.path.join(folder, f"{i}.json"))
            with open(files[-1], "w") as file:
                json.dump(pareto_document(data, result), file)
        done = subprocess.run([tool, "report", *files, "--html", path], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise Failure(f"refrain report ended with {done.returncode}: {done.stderr.strip()}")
