#!/usr/bin/env python3
"""The measured tables of README.md and docs, made from bench/results.

    bench/tables.py --check    exit 1 if a table is not what its file says; each line names one
    bench/tables.py --write    puts them there

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`. Every table in `TABLES` whose file is there must be in its document,
once. No LibTorch, nothing is measured.
"""

import argparse
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
import budgets  # noqa: E402
import compiled as compiled_budgets  # noqa: E402
import results_file  # noqa: E402
from results_file import Refused, of  # noqa: E402

MIB = 2**20
REGION = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- /table -->\n", re.S)
NAMES = {"blocks-small": "12 small transformer blocks", "blocks": "8 transformer blocks", "resnet50": "ResNet-50", "unet": "U-Net"}


def row(cells):
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def table(header, texts, rows):
    """@param texts  headings of columns that hold words; numbers stand to the right."""
    rule = "|" + "".join("---|" if name in texts else "--:|" for name in header)
    return "\n".join([row(header), rule, *map(row, rows)])


def mib(size, digits):
    return f"{size / MIB:.{digits}f}"


def percent(part):
    return f"{100 * part:.0f}"


# README.md -----------------------------------------------------------------------------------------------------------


def milliseconds(value, step):
    """To a tenth where the model's steps are short or the number is small."""
    return f"{value:.0f}" if step >= 100 and abs(value) >= 10 else f"{value:.1f}"


def sizes(model):
    shape = model["input_shape"]
    return f"(d {shape[2]}, batch {shape[0]}, seq {shape[1]})" if len(shape) == 3 else f"(batch {shape[0]}, {shape[-1]} px)"


def pair(ours, theirs, show):
    """Cells of ours and theirs, the better one bold; ours where they are equal."""
    return (f"**{show(ours)}**", show(theirs)) if ours <= theirs else (show(ours), f"**{show(theirs)}**")


def peers_rows(model):
    plans = {(p["runtime"], p["name"]): p for p in model["plans"]}
    torch, none = plans["torch", "plain"], plans["refrain", "none"]
    step = torch["step_ms_median"]
    both = [" / ".join(dict.fromkeys((mib(torch[f], 2), mib(none[f], 2)))) for f in ("after_forward_bytes", "peak_bytes")]
    yield [NAMES[model["model"]], "no checkpointing, torch / refrain", " / ".join(milliseconds(p["step_ms_median"], step) for p in (torch, none)), "",
           *both, " / ".join(mib(p["resident_bytes"], 0) for p in (torch, none)), ""]
    about = sizes(model)
    for comparison in model["comparisons"]:
        theirs, ours = plans["torch", comparison["against"]], plans["refrain", comparison["plan"]]
        columns = [pair(ours[field], theirs[field], show) for field, show in (
            ("step_ms_median", lambda v: milliseconds(v, step)), ("added_ms_median", lambda v: milliseconds(v, step)),
            ("after_forward_bytes", lambda v: mib(v, 2)), ("peak_bytes", lambda v: mib(v, 2)), ("resident_bytes", lambda v: mib(v, 0)))]
        name = comparison["against"].replace("-all", ", everything")
        yield [about, f"torch {name}", *(c[1] for c in columns), budgets.same_bits(theirs)]
        yield ["", f"**refrain {comparison['plan']}**", *(c[0] for c in columns), budgets.same_bits(ours)]
        about = ""


def peers(result):
    return table(["model", "plan", "ms", "added ms", "after forward MiB", "peak MiB", "resident MiB", "same bits"], ("model", "plan", "same bits"),
                 [cells for model in result["models"] for cells in peers_rows(model)])


# of each model the peers at whose peaks README.md compares; docs/peers.md has all
BUDGET_PEERS = {"blocks-small": ("checkpoint", "selective"), "blocks": ("checkpoint", "selective"),
                "resnet50": ("checkpoint-all", "selective-all"), "unet": ("checkpoint",)}


def budget_rows(model):
    found = {c["against"]: c for c in model["comparisons"]}
    step = next(p["step_ms_median"] for p in model["plans"] if p["name"] == "plain")
    for i, name in enumerate(BUDGET_PEERS[model["model"]]):
        c = found[f"torch/{name}"]
        start = f"{NAMES[model['model']]}, at the peak of" if i == 0 else "at that of"
        ours, theirs = pair(c["our_ms_median"], c["their_ms_median"], lambda v: milliseconds(v, step))
        ratio = budgets.spread(c["step_ratio"]).replace("quartiles ", "")
        yield [f"{start} torch {name.replace('-all', ', everything')}", mib(c["their_peak_bytes"], 2), theirs, ours, ratio]


def peak_budgets(result):
    return table(["model", "peak MiB", "torch ms", "refrain ms", "ours / theirs"], ("model",),
                 [cells for model in result["models"] for cells in budget_rows(model)])


# docs/peers.md -------------------------------------------------------------------------------------------------------


def published(model):
    return "; ".join(f"{p['model']} {percent(p['overhead'])} % at {percent(p['limit_gb'] / p['plain_gb'])} %" for p in model.get("published", ()))


def limits(result):
    """Added time in percent, with the default heuristic."""
    parts = sorted({r["percent"] for model in result["models"] for r in model["rows"]}, reverse=True)
    rows = []
    for model in result["models"]:
        added = {r["percent"]: percent(r["overhead"]) if r["fits"] else "-" for r in model["rows"] if r["heuristic"] == "h_dtr"}
        rows.append([model["model"], f"{model['plain']['step_ms_median']:.0f}", *(added[part] for part in parts), published(model)])
    header = ["model", "ms", *(f"{part} %" for part in parts), "DTR, as published"]
    return table(header, ("model", "DTR, as published"), rows)


def about(result, model):
    """What a comparison of budgets was measured on."""
    machine, versions, config = (of(result, model, name) for name in ("machine", "versions", "config"))
    plans = {p["name"]: p for p in model["plans"]}
    others = model["other_processes_cpu_share"]
    return (f"**{model['model']}**, {machine['processor']}, {machine['cores']} cores, {config['threads']} thread{'s' if config['threads'] > 1 else ''}, "
            f"torch {versions['torch']}, {of(result, model, 'date')[:10]}, {model['rounds']} rounds; baseline torch {plans['plain']['step_ms_median']:.1f} ms, "
            f"refrain {plans['none']['step_ms_median']:.1f} ms, peak {mib(plans['none']['peak_bytes'], 2)} MiB. "
            f"Other processes used {others:.0%} of the processors{', so times are rough' if others > 0.05 else ''}.")


def first_steps(result):
    """Seconds, the least to the most of all plans of a kind."""
    def range_of(model, prefix, field):
        seconds = [p[field] / 1e3 for p in model["plans"] if p["name"].startswith(prefix) and field in p]
        return f"{min(seconds):.2f} to {max(seconds):.2f}" if seconds else ""

    rows = [["model", "torch.compile inductor", "torch.compile aot_eager", "refrain budget", "its planning"]]
    rows += [[m["model"], range_of(m, "inductor", "first_ms"), range_of(m, "aot_eager", "first_ms"), range_of(m, "budget", "first_ms"),
              range_of(m, "budget", "first_planning_ms")] for m in result["models"]]
    return budgets.table(rows, markdown=True)


def compared_budgets(result):
    parts = [f"{about(result, model)}\n\n{budgets.comparisons_table(model, markdown=True)}" for model in result["models"]]
    return "\n\n".join(parts + ["The first step and the planning in it, in seconds, least to most of all budgets:", first_steps(result)])


def budget_losses(result):
    lines = [f"* {model['model']}: {loss}" for model in result["models"] for loss in budgets.losses(model)]
    return "\n".join(lines or ["* nowhere in this run"])


# docs/design/memory.md -----------------------------------------------------------------------------------------------


def resident_rows(model):
    for label in dict.fromkeys(r["row"] for r in model["rows"]):
        heaps = {heap: [r for r in model["rows"] if (r["row"], r["heap"]) == (label, heap)] for heap in ("malloc", "refrain")}
        if not all(r["fits"] for turns in heaps.values() for r in turns):
            continue
        over = [max(r["resident_peak_bytes"] for r in turns) - model["base_bytes"] for turns in heaps.values()]
        ms = [statistics.median(r["step_ms_median"] for r in turns) for turns in heaps.values()]
        peak = heaps["refrain"][0]["peak_bytes"]
        yield [f"{model['model']}, {label}", mib(peak, 1), *(mib(size, 1) for size in over), mib(1.08 * peak + 16 * MIB, 1),
               " / ".join(f"{value:.0f}" for value in ms)]


def resident(result):
    return table(["model, row", "allocator's peak", "malloc", "heap", "bound", "ms, malloc / heap"], ("model, row",),
                 [cells for model in result["models"] for cells in resident_rows(model)])


def resident_limits(result):
    rows = []
    for model in result["models"]:
        for r in model["rows"]:
            limit = mib(r["limit_bytes"], 0)
            rows.append([limit, *(mib(r[field], 0) for field in ("watched_bytes", "peak_bytes")), mib(r["malloc"]["watched_bytes"], 0),
                         "yes" if r["bit_equal"] else "NO"] if r["fits"] else [limit, "refused", "", "", ""])
    return table(["limit MiB", "highest VmRSS MiB", "tensors MiB", "malloc's highest VmRSS MiB", "same bits"], ("same bits",), rows)


# All of them ---------------------------------------------------------------------------------------------------------

def compiled(result):
    return compiled_budgets.report(result, markdown=True)


def python_rows(result):
    """Milliseconds with the ratio to torch's checkpoint, and peaks, of each mode."""
    rows = []
    for model in result["models"]:
        by_mode = {r["mode"]: r for r in model["rows"]}
        cells = [f"{by_mode['baseline']['ms']:.0f} ({mib(by_mode['baseline']['peak_bytes'], 0)})", f"{by_mode['torch']['ms']:.0f} ({mib(by_mode['torch']['peak_bytes'], 0)})"]
        for mode in ("region", "cap", "budget"):
            found = by_mode[mode]
            cells.append(f"{found['ms']:.0f} ({mib(found['peak_bytes'], 0)}), {found['over_torch']:.2f}" + ("" if found["same_bits"] else ", other bits"))
        rows.append([model["model"], *cells])
    header = ["model", "baseline", "torch.utils.checkpoint", "region", "cap at its peak", "budget at its peak"]
    return table(header, ("model",), rows)


TABLES = {  # name: document, file under bench/results, what makes it
    "peers": ("README.md", "peers", peers),
    "peak_budgets": ("README.md", "peers_budget", peak_budgets),
    "limits": ("docs/peers.md", "limits", limits),
    "budgets": ("docs/peers.md", "peers_budget", compared_budgets),
    "budget_losses": ("docs/peers.md", "peers_budget", budget_losses),
    "compile": ("docs/guide/compile.md", "peers_compile", compiled),
    "python": ("docs/guide/python.md", "python", python_rows),
    "resident": ("docs/design/memory.md", "resident", resident),
    "resident_limits": ("docs/design/memory.md", "resident_limits", resident_limits),
}


def made(root):
    """{document: {name of a table: its text}} of all files that are there. @raises Refused"""
    documents, read = {}, {}
    for name, (document, file, make) in TABLES.items():
        path = root / "bench/results" / f"{file}.json"
        if not path.exists():
            continue
        if file not in read:
            read[file] = results_file.read(path, f"bench/{file}")
        try:
            documents.setdefault(document, {})[name] = make(read[file])
        except (KeyError, TypeError, StopIteration) as error:
            raise Refused(f"{path}: found nothing to make the table {name} of: {error!r}; expected a file that its runner wrote") from None
    return documents


def first_difference(found, expected):
    pairs = zip(found.splitlines() + [""], expected.splitlines() + [""])
    return next((f"found {a!r}, expected {b!r}" for a, b in pairs if a != b), "found another number of lines")


def with_tables(document, text, tables):
    """`text` with the tables in place, and a line for each that was not as it is made. @raises Refused"""
    found = [match[1] for match in REGION.finditer(text)]
    if text.count("<!-- table: ") != len(found) or text.count("<!-- /table -->") != len(found):
        raise Refused(f"{document}: found a table without beginning or end; expected `<!-- table: NAME -->` and `<!-- /table -->`, each on a line")
    if sorted(found) != sorted(tables):
        raise Refused(f"{document}: found tables {', '.join(found) or '(none)'}; expected {', '.join(tables)}, each once")
    faults = []

    def put(match):
        made_of = f"\n{tables[match[1]]}\n\n"
        if match[2] != made_of:
            faults.append(f"{document}: table {match[1]}: {first_difference(match[2].strip(), made_of.strip())}; run bench/tables.py --write")
        return f"<!-- table: {match[1]} -->\n{made_of}<!-- /table -->\n"

    return REGION.sub(put, text), faults


def run(root, writes):
    faults = []
    for document, tables in made(root).items():
        path = root / document
        text, found = with_tables(document, path.read_text(), tables)
        if writes and found:
            results_file.write_atomically(path, text)
        faults += found
    return [] if writes else faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--check", action="store_true")
    which.add_argument("--write", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT, help="default: this repository")
    args = parser.parse_args()
    try:
        faults = run(args.root, args.write)
    except (Refused, OSError) as error:
        faults = [f"tables: {error}"]
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
