"""A peak budget for torch.compile beside its `activation_memory_budget`: bench/peers/run --compile.

Each model is measured by compile_peer.py, in a process of its own with empty caches. About three and a half hours on
two idle cores, of which ResNet-50 is more than half;
with --quick some 15 minutes: small blocks and U-Net, three of torch's budgets, no sweep over budgets.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import results_file
from stepping import MIB, ROOT, Failure, note, table

ROUNDS = {"blocks-small": 15, "blocks": 7, "resnet50": 5, "unet": 9, "gpt2": 7, "llama": 7}
QUICK = ("blocks-small", "unet")
ASKED = 10


def measure(model, options):
    """@return the model as it stands in the file, and versions and config of its run."""
    rounds = options.iters or (5 if options.quick else ROUNDS[model])
    budgets = "1.0,0.5,0.0" if options.quick else "1.0,0.7,0.5,0.3,0.0"
    command = [
        options.python,
        os.path.join(ROOT, "bench/peers/compile_peer.py"),
        model,
        "--budgets",
        budgets,
        "--rounds",
        str(rounds),
        "--threads",
        str(options.threads),
    ]
    command += ["--asked", "0" if options.quick else str(ASKED)]
    caches = tempfile.mkdtemp(prefix="refrain-compile-")
    library = os.path.join(options.build, "lib", "librefrain.so")
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": caches,
        "REFRAIN_CACHE_DIR": caches,
        "REFRAIN_LIBRARY": library,
    }
    load, last = os.getloadavg()[0], None
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
            for line in process.stdout:
                last = json.loads(line)
                if "name" in last:
                    note(
                        f"{model}: {last['name']}: {mib(last['peak_bytes'])} MiB, first step in {last['first_s']:.1f} s"
                    )
        if process.returncode != 0 or last is None or "done" not in last:
            raise Failure(f"{model}: compile_peer.py ended with {process.returncode}; its errors are above")
    finally:
        shutil.rmtree(caches, ignore_errors=True)
    result = {
        "model": model,
        "rounds": rounds,
        "input_shape": last["input_shape"],
        "parameters": last["parameters"],
        "load_before": load,
        "rows": last["done"],
    }
    versions = {"torch": last["torch"], "python": last["python"]}
    return result, versions, {"threads": options.threads, "quick": options.quick, "torch_budgets": budgets}


def mib(size):
    return f"{size / MIB:.2f}"


def row_of(model, name):
    return next((row for row in model["rows"] if row["name"] == name), None)


def counted(model):
    """Of all budgets in bytes that ours was asked for: how many, how many fit, how many are within 5 %."""
    asked = [row for row in model["rows"] if row.get("is_sweep")]
    return (
        len(asked),
        sum(row["peak_bytes"] <= row["asked_bytes"] for row in asked),
        sum(row["peak_bytes"] <= 1.05 * row["asked_bytes"] for row in asked),
    )


def comparison_rows(model):
    for theirs in model["rows"]:
        if not theirs["name"].startswith("torch "):
            continue
        ours = row_of(model, f"ours at {theirs['name']}")
        ratio = ours["step_ratio"]
        yield [
            theirs["name"].removeprefix("torch "),
            f"{mib(theirs['peak_bytes'])}, {mib(ours['peak_bytes'])}",
            f"{theirs['ms']:.1f}, {ours['ms']:.1f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{theirs['gradients']:.1e}, {ours['gradients']:.1e}",
            str(ours["replans"]),
        ]


def lowest(model):
    theirs = min((row for row in model["rows"] if row["name"].startswith("torch ")), key=lambda row: row["peak_bytes"])
    ours = min(
        (row for row in model["rows"] if row["name"] not in ("eager",) and not row["name"].startswith("torch ")),
        key=lambda row: row["peak_bytes"],
    )
    return theirs, ours


def summary(model):
    theirs, ours = lowest(model)
    eager = row_of(model, "eager")
    planned = [row for row in model["rows"] if "planning_s" in row]
    share = max(row["planning_s"] / row["first_s"] for row in planned)
    text = (
        f"**{model['model']}**, {model['rounds']} rounds; eager {eager['ms']:.1f} ms, {mib(eager['peak_bytes'])} MiB. "
        f"Lowest peak: torch {mib(theirs['peak_bytes'])} MiB ({theirs['ms']:.1f} ms), ours "
        f"{mib(ours['peak_bytes'])} MiB ({ours['ms']:.1f} ms), {ours['peak_bytes'] / theirs['peak_bytes']:.2f} of it. "
        f"Planning at most {share:.0%} of the first step."
    )
    asked, fit, close = counted(model)
    return text + (f" Of {asked} budgets asked in bytes {fit} fit, {close} within 5 %." if asked else "")


HEADER = [
    "torch's budget",
    "peaks MiB: torch, ours",
    "ms: torch, ours",
    "our step / torch's (quartiles)",
    "gradients off eager's: torch, ours",
    "further plans",
]


def report(data, markdown):
    parts = [f"{summary(model)}\n\n{table([HEADER, *comparison_rows(model)], markdown)}" for model in data["models"]]
    return "\n\n".join(parts)


def targets(model):
    theirs, ours = lowest(model)
    found = [
        {"what": f"step at the peak of {row['against']}", "met": row["step_ratio"]["median"] <= 1.0}
        for row in model["rows"]
        if "against" in row
    ]
    found.append({"what": "lowest peak", "met": ours["peak_bytes"] <= 0.8 * theirs["peak_bytes"]})
    asked, fit, close = counted(model)
    if asked:
        found.append({"what": "budgets that fit", "met": fit >= 0.95 * asked and close == asked})
    return found


def run(options):
    began = results_file.Run(options.allow_dirty)
    data = (
        results_file.read(options.out, "bench/peers_compile")
        if options.update and os.path.exists(options.out)
        else None
    )
    for model in options.models:
        result, versions, config = measure(model, options)
        data = results_file.document("bench/peers_compile", began.origin(versions, config), [result], kept=data)
        data["models"].sort(key=lambda m: list(ROUNDS).index(m["model"]))
        results_file.write(options.out, data)
    print(report(data, options.markdown))
    print(f"written: {os.path.relpath(options.out)}", file=sys.stderr)
    return 3 if options.check and any(not t["met"] for m in data["models"] for t in targets(m)) else 0
