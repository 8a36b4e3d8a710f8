"""What both comparisons of bench/peers/run share: step servers, turns, statistics, tables."""

import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MIB = 1024.0 * 1024.0


class Failure(Exception):
    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


class Peer:
    """A step server in a process of its own."""

    def __init__(self, name, command, timeout, environment=None):
        self.name = name
        self.timeout = timeout
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, bufsize=1, cwd=ROOT,
                                        env=os.environ | (environment or {}))
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.hello = self._answer("start")

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _answer(self, what):
        try:
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            raise Failure(f"{self.name}: no answer to '{what}' within {self.timeout} s; raise --timeout?") from None
        if line is None:
            code = self.process.wait()
            self.log.seek(0)
            last = "; ".join(self.log.read().strip().splitlines()[-3:])
            raise Failure(f"{self.name}: ended with code {code} at '{what}': {last or 'it printed nothing'}")
        try:
            answer = json.loads(line)
        except ValueError:
            raise Failure(f"{self.name}: expected a JSON line after '{what}', found {line.strip()[:80]!r}") from None
        if "error" in answer:
            raise Failure(f"{self.name}: '{what}': {answer['error']}")
        return answer

    def ask(self, command):
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says why
        return self._answer(command)

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status_bytes(self, field):
        """VmRSS or VmHWM, of the process now."""
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith(field + ":"))
        return int(line.split()[1]) * 1024

    def close(self):
        if self.process.poll() is None:
            try:
                self.process.stdin.write("quit\n")
                self.process.stdin.close()
                self.process.wait(timeout=10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        self.log.close()


def resident_growth(start, model, options, mode, steps=5):
    """By how many resident bytes a process that runs only this plan grows from the built model to its peak."""
    peer = start(model, options)
    try:
        before = peer.status_bytes("VmRSS")
        for _ in range(steps):
            peer.ask(f"step {mode}")
        return peer.status_bytes("VmHWM") - before
    finally:
        peer.close()


# Statistics ----------------------------------------------------------------------------------------------------------


def quantile(values, q):
    """Linear interpolation; infinities are allowed."""
    values = sorted(values)
    at = q * (len(values) - 1)
    low, high = math.floor(at), math.ceil(at)
    if low == high or values[low] == values[high]:
        return values[low]
    return values[low] + (values[high] - values[low]) * (at - low)


def finite(x):
    return x if x is not None and math.isfinite(x) else None


def ratio_with_spread(numerators, denominators, generator):
    """Median over rounds of a ratio; of each round it follows from the steps, which the file has. A round whose denominator is not positive counts as infinite: against us."""
    rounds = [n / d if d > 0 else math.inf for n, d in zip(numerators, denominators)]
    resampled = [quantile(generator.choices(rounds, k=len(rounds)), 0.5) for _ in range(2000)]
    below = statistics.median(denominators)
    return {
        "median": finite(quantile(rounds, 0.5)),
        "quartiles": [finite(quantile(rounds, 0.25)), finite(quantile(rounds, 0.75))],
        "bootstrap_95": [finite(quantile(resampled, 0.025)), finite(quantile(resampled, 0.975))],
        "ratio_of_medians": statistics.median(numerators) / below if below > 0 else None,
        "rounds_without_baseline": sum(d <= 0 for d in denominators),
    }


# Steps in turn --------------------------------------------------------------------------------------------------------


class Plan:
    def __init__(self, peer, mode, command="step"):
        self.peer = peer
        self.mode = mode
        self.command = command
        self.samples = []

    @property
    def key(self):
        return f"{self.peer.name}/{self.mode}" + ("/timing" if self.command == "timing" else "")

    def run(self):
        return self.peer.ask(f"{self.command} {self.mode}")

    def column(self, field):
        return [s[field] for s in self.samples]

    def summary(self, plain):
        last = self.samples[-1]
        ms = self.column("ms")
        out = {
            "runtime": self.peer.name,
            "name": self.mode,
            "step_ms_median": statistics.median(ms),
            "step_ms_min": min(ms),
            "step_ms_quartiles": [quantile(ms, 0.25), quantile(ms, 0.75)],
            "added_ms_median": statistics.median(minus(self, plain)),
            # the most any round took: a step that only sometimes stays low has not shown that it does
            "after_forward_bytes": max(self.column("after_forward_bytes")),
            "peak_bytes": max(self.column("peak_bytes")),
            "left_bytes": max(self.column("left_bytes")),
            "regions": last["regions"],
            "replayed_ops": last["replayed_ops"],
            "step_ms": ms,
        }
        for field in ("recorded_ops", "replay_passes"):
            if field in last:
                out[field] = last[field]
        return out


def minus(plan, plain):
    return [a - b for a, b in zip(plan.column("ms"), plain.column("ms"))]


def cpu_busy_seconds():
    with open("/proc/stat") as stat:
        fields = [int(x) for x in stat.readline().split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait


def check_same_model(peers):
    ours, torch = (p.hello for p in peers)
    for field, what in (("threads", "threads"), ("input_shape", "shape of the input")):
        if ours[field] != torch[field]:
            raise Failure(f"not comparable: {what}: refrain {ours[field]}, torch {torch[field]}")
    if sorted(ours["parameter_shapes"]) != sorted(torch["parameter_shapes"]):
        raise Failure("not comparable: the two models have different parameters "
                      f"({len(ours['parameter_shapes'])} and {len(torch['parameter_shapes'])})")
    if ours["torch"].split("+")[0] != torch["torch"].split("+")[0]:
        raise Failure(f"not comparable: LibTorch: refrain {ours['torch']}, torch {torch['torch']}")


def note(text):
    print(text, file=sys.stderr, flush=True)


def start_refrain(model, options):
    return Peer("refrain", [os.path.join(options.build, "bin", "refrain-peer-steps"), model,
                            "--threads", str(options.threads)], options.timeout)


def start_torch(model, options, **environment):
    return Peer("torch", [options.python, os.path.join(HERE, "torch_peer.py"), model,
                          "--build-dir", os.path.join(options.build, "peers"), "--threads", str(options.threads)],
                options.timeout, environment)


def take_turns(model, order, peers, rounds, options):
    """One timed step of each plan in each round. Returns the part of the processors that other processes used."""
    busy, own, start = cpu_busy_seconds(), sum(p.cpu_seconds() for p in peers), time.monotonic()
    for index in range(rounds):
        for plan in order[index % len(order):] + order[:index % len(order)]:
            time.sleep(options.gap_ms * 1e-3)  # the other process's OpenMP threads stop spinning
            for _ in range(options.settle):
                plan.run()
            plan.samples.append(plan.run())
        note(f"{model}: round {index + 1} of {rounds}")
    wall = time.monotonic() - start
    others = (cpu_busy_seconds() - busy) - (sum(p.cpu_seconds() for p in peers) - own)
    return max(0.0, others) / wall / os.cpu_count()


# Output ---------------------------------------------------------------------------------------------------------------


def number(x, digits=2):
    return "-" if x is None else f"{x:.{digits}f}"


def table(rows, markdown):
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [row[i].ljust(widths[i]) if i < 2 else row[i].rjust(widths[i]) for i in range(len(row))]
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()

    rule = ["-" * (w - 1) + (":" if markdown and i >= 2 else "-") for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule)] + [line(r) for r in rows[1:]])


def spread(r):
    low, high = r["quartiles"]
    return f"{number(r['median'])} (quartiles {number(low)} to {number(high)})"



# Provenance -----------------------------------------------------------------------------------------------------------


def versions_of(hellos):
    """@param hellos  first answers of the step servers, by runtime."""
    out = {}
    if "refrain" in hellos:
        out |= {"libtorch": hellos["refrain"]["torch"], "compiler": hellos["refrain"]["compiler"]}
    if "torch" in hellos:
        out |= {"torch": hellos["torch"]["torch"], "python": hellos["torch"]["python"]}
    return out


def config_of(hellos, options):
    """What all steps of a run have in common."""
    config = {"runtimes": sorted(hellos), "threads": next(iter(hellos.values()))["threads"],
              "warmup": options.warmup, "settle": options.settle, "gap_ms": options.gap_ms, "seed": options.seed}
    if "refrain" in hellos:
        config["optimised"] = hellos["refrain"]["optimised"]
    return config
