"""Files of measurements: what was measured, when, on which commit and machine. All runners in bench/ write bench/results through this.

    {"kind": "bench/limits", "version": 1,       # the path of the file under bench/results, without .json
     "date": "2026-11-26T14:24:06+00:00",        # when the run began, UTC
     "commit": "9a0c6404...",                    # HEAD then; null: not recorded
     "clean": true,                              # whether the tree was that commit, from the beginning of the run to its end
     "machine": {"processor", "cores", "memory_bytes", "system", ...},
     "versions": {"libtorch", "compiler", ...},
     "config": {...},                            # options of the run
     "notes": [...],                             # what a reader must know of the numbers, in words
     "models": [{"model": "gpt", ...}]}

All these members are there. A model of another run than the rest has its own `date`, `commit`, `clean`, `machine`, `versions` or
`config` where they differ: read them with `of`. The file's `clean` is true only if all models are. A tree is dirty if git sees a change,
untracked files too, anywhere but in bench/results.
"""

import datetime
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
VERSIONS = {f"bench/{name}": 1 for name in ("cost", "limits", "peers", "peers_budget", "peers_compile", "plan", "python", "resident", "resident_limits")}
ORIGIN = {"date": str, "commit": (str, type(None)), "clean": bool, "machine": dict, "versions": dict, "config": dict}
ENVELOPE = {"kind": str, "version": int, **ORIGIN, "notes": list, "models": list}
DIGITS = 9  # significant ones of a number that is not an integer
DEEPEST_LINE = 3  # lists and objects within each other on one line


class Refused(Exception):
    """A tree or a file that is not what it must be: what was found, what was expected."""


# The tree ------------------------------------------------------------------------------------------------------------


def git(root, *words):
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def state_of(root):
    """HEAD and what is not committed, as git prints it; (None, "") where there is no repository."""
    return git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain", "--", ".", ":(exclude)bench/results") or ""


def add_option(parser):
    parser.add_argument("--allow-dirty", action="store_true",
                        help="measure a tree with uncommitted changes; the file then says \"clean\": false")


class Run:
    """A run of a benchmark, from before the first step on. @raises Refused if the tree is dirty and that is not allowed."""

    def __init__(self, allow_dirty=False, root=ROOT):
        self.root, self.state = root, state_of(root)
        self.date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.load_before = os.getloadavg()
        commit, changes = self.state
        if allow_dirty or (commit and not changes):
            return
        lines = changes.splitlines()
        found = f"{len(lines)} uncommitted changes ({lines[0].strip()}, ...)" if commit else "no git repository"
        raise Refused(f"found {found}; expected a clean tree, so that the commit says what was measured; commit first, or give --allow-dirty")

    def origin(self, versions, config):
        """Members of `ORIGIN`, at the end of the run."""
        commit, changes = self.state
        is_clean = bool(commit) and not changes and state_of(self.root) == self.state
        load = {"load_before": list(self.load_before), "load_after": list(os.getloadavg())}  # of 1, 5 and 15 minutes
        return {"date": self.date, "commit": commit, "clean": is_clean, "machine": this_machine() | load, "versions": versions, "config": config}


def first_value(path, key):
    with open(path) as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "unknown")


def this_machine():
    system = platform.uname()
    return {
        "processor": first_value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{system.system} {system.release} {system.machine}",
        "libc": " ".join(platform.libc_ver()),
    }


def tool_versions(refrain):
    """What the tool at this path is built of."""
    done = subprocess.run([str(refrain), "env", "--json", "-"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(f"{refrain} env ended with {done.returncode}; expected 0: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    return {name: found[name] for name in ("refrain", "libtorch", "compiler")}


# Documents -----------------------------------------------------------------------------------------------------------


def document(kind, origin, models, kept=None, notes=()):
    """@param kept  an earlier document of this kind, whose models that are not among `models` stay, with its notes."""
    own = {m["model"]: origin | m for m in models}
    for model in kept["models"] if kept else []:
        if model["model"] not in own:
            own[model["model"]] = {name: of(kept, model, name) for name in ORIGIN} | model
    if kept and len(own) > len(models):
        notes = dict.fromkeys([*kept["notes"], *notes])
    shared = origin | {"clean": all(model["clean"] for model in own.values())}
    bodies = [{"model": name} | {k: v for k, v in model.items() if k not in shared or shared[k] != v} for name, model in own.items()]
    return {"kind": kind, "version": VERSIONS[kind], **shared, "notes": list(notes), "models": bodies}


def of(whole, model, name):
    """What a model has of `ORIGIN`: its own, or that of the file."""
    return model.get(name, whole[name])


def check(whole, kind, where="document"):
    """@raises Refused if it is no document of this kind and version in the form above."""
    def refuse(what, found, expected):
        raise Refused(f"{where}: {what}found {found}; expected {expected}")

    expected = f'kind "{kind}" version {VERSIONS[kind]}'
    if not isinstance(whole, dict):
        refuse("", f"a {type(whole).__name__}", expected)
    if (whole.get("kind"), whole.get("version")) != (kind, VERSIONS[kind]):
        refuse("", f"kind {json.dumps(whole.get('kind'))} version {json.dumps(whole.get('version'))}", expected)
    for name, types in ENVELOPE.items():
        if name not in whole:
            refuse(f"`{name}`: ", "nothing", "this member")
        if not isinstance(whole[name], types):
            refuse(f"`{name}`: ", json.dumps(whole[name])[:40], getattr(types, "__name__", "a text or null"))
    for name in whole:
        if name not in ENVELOPE:
            refuse(f"`{name}`: ", "a member of no meaning", f"some of {', '.join(ENVELOPE)}")
    names = []
    for i, model in enumerate(whole["models"]):
        if not isinstance(model, dict) or not isinstance(model.get("model"), str) or model["model"] in names:
            refuse(f"`models[{i}]`: ", json.dumps(model)[:40], "an object with a `model` of its own")
        names.append(model["model"])
        commit, is_clean = of(whole, model, "commit"), of(whole, model, "clean")
        if commit is not None and not re.fullmatch("[0-9a-f]{40}", commit):
            refuse(f"`models[{i}].commit`: ", json.dumps(commit), "40 hexadecimal digits, or null")
        if is_clean and commit is None:
            refuse(f"`models[{i}].clean`: ", "true without a commit", "a commit, or false")
        if whole["clean"] and not is_clean:
            refuse("`clean`: ", f"true, with a {model['model']} of a dirty tree", "false")
    return whole


def read(path, kind):
    """@raises Refused, OSError"""
    try:
        whole = json.loads(Path(path).read_text())
    except ValueError as error:
        raise Refused(f"{path}: found no JSON ({error}); expected kind \"{kind}\" version {VERSIONS[kind]}") from None
    return check(whole, kind, path)


def write(path, whole):
    write_atomically(path, encode(check(whole, whole["kind"])))


# Text ----------------------------------------------------------------------------------------------------------------


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    return value


def height(value):
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(height, items), default=0)


def has_rows(value):
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return True
    return any(map(has_rows, value.values() if isinstance(value, dict) else value)) if isinstance(value, (dict, list)) else False


def lines_of(value, indent):
    """A row on one line: what has no rows in it, and is not nested deeper."""
    if not has_rows(value) and height(value) <= DEEPEST_LINE:
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(name)}: {lines_of(item, inner)}" for name, item in value.items()]
    else:
        parts = [inner + lines_of(item, inner) for item in value]
    ends = "{}" if isinstance(value, dict) else "[]"
    return ends[0] + "\n" + ",\n".join(parts) + "\n" + indent + ends[1]


def encode(whole):
    """JSON of one row a line, numbers of `DIGITS` digits. @raises ValueError for one that is not finite."""
    return lines_of(rounded(whole), "") + "\n"


def write_atomically(path, text):
    """The old content or the new, never a part."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="." + path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
