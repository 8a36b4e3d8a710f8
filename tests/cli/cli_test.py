"""Runs the refrain tool as a user would: exit codes, messages, files, JSON. REFRAIN_BIN names the binary."""

import json
import math
import os
import random
import re
import signal
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

BIN = os.environ.get("REFRAIN_BIN", "build/bin/refrain")
SMALL_GPT = ["gptsmall", "--depth", "2", "--seq", "32", "--width", "32"]


def refrain(*args):
    return subprocess.run([BIN, *map(str, args)], capture_output=True, text=True, timeout=300)


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)

    def file(self, name, content=b""):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def text(self):
        return self.file("text.txt", "the quick brown fox jumps over the lazy dog. " * 60)

    def succeed(self, *args):
        result = refrain(*args)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        return result.stdout

    def refuse(self, *args, code=2, says=()):
        """Exits with `code`, one line on standard error that holds all of `says`, no new file."""
        before = sorted(self.dir.rglob("*"))
        result = refrain(*args)
        self.assertEqual(result.returncode, code, f"{args}: {result.stderr}{result.stdout}")
        self.assertRegex(result.stderr, r"\Arefrain: [^\n]+\n\Z", args)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, result.stderr)
        if code == 2:
            self.assertEqual(before, sorted(self.dir.rglob("*")), args)
        return result.stderr


class HelpTest(CliTest):
    def test_help_everywhere_with_exit_codes(self):
        for command in ([], ["env"], ["verify"], ["bench"], ["explain"], ["train"], ["launch"], ["compare"], ["report"],
                        ["segments"], ["max-batch"], ["least-limit"], ["advise"], ["breakdown"], ["timeline"], ["profile"], ["plan"], ["pareto"]):
            self.assertIn("Exit codes:", self.succeed(*command, "--help"))

    def test_version(self):
        self.assertRegex(self.succeed("--version"), r"^refrain \d+\.\d+\.\d+\n$")


class BadInputTest(CliTest):
    def test_commands_and_options(self):
        self.refuse(says="subcommand")
        self.refuse("trian", says=("unknown command 'trian'", "did you mean train?"))
        self.refuse("train", "gpt", "--steps", 1, "--stratgy", "none", says=("'--stratgy'", "did you mean --strategy?"))
        self.refuse("train", "gpt", says="--steps is required")
        self.refuse("train", "gpt", "--steps", 0, says="--steps")
        self.refuse("train", "gpt", "--steps", "many", says=("--steps", "many"))
        self.refuse("train", "gpt", "--steps", 1, "--optimizer", "adagrad", says="adagrad")
        self.refuse("train", "gpt", "--steps", 1, "--lr", "nan", says="--lr")
        self.refuse("train", "gpt", "--steps", 1, "--epochs", 1, says="--steps and --epochs")
        self.refuse("train", "gpt", "--epochs", 2, says=("--epochs 2", "data 'synthetic' has no end"))
        self.refuse("train", "gpt", "--steps", 9, "--schedule", "linear", says="--schedule")
        self.refuse("train", "gpt", "--steps", 9, "--schedule", "cosine", "--warmup", 9, says="--warmup 9")
        self.refuse("train", "gpt", "--steps", 9, "--min-lr", 0.1, says=("--min-lr", "--schedule cosine"))
        self.refuse("train", "gpt", "--steps", 9, "--save-every", 2, says="expected --save with it")
        self.refuse("train", "gpt", "--steps", 9, "--accumulate", 0, says="--accumulate")
        self.refuse("train", "gpt", "--steps", 9, "--clip-norm", 0, says="--clip-norm")
        self.refuse("train", "gpt", "--steps", 9, "--weight-decay", -1, says="--weight-decay")
        self.refuse("train", "gpt", "--steps", 9, "--ranks", 0, says="--ranks")
        self.refuse("bench", "gpt", "--iters", -3, says="--iters")
        self.refuse("verify", "gpt", "--seed", -1, says="--seed")
        self.refuse("verify", "gpt", "--batch", 1.5, says="--batch")
        self.refuse("verify", "gpt", "more", says="unknown argument 'more'")

    def test_models_strategies_sizes(self):
        self.refuse("verify", "gpd", says=("model 'gpd'", "expected one of gpt,"))
        self.refuse("explain", "gpd", says=("model 'gpd'", "expected one of gpt,"))
        self.refuse("explain", "gpt", "--strategy", "per_blok", says=("strategy 'per_blok'", "per_block, none"))
        self.refuse("explain", "mlp", "--vocab", 9, says=("vocab 9", "no such size"))
        self.refuse("explain", "gpt", "--iters", 3, says="unknown option '--iters'")
        self.refuse("explain", says="MODEL is required")
        self.refuse("explain", *SMALL_GPT, "--dot", "x", says=("--dot and --trace", "'gptsmall'"))
        self.refuse("explain", self.dir / "no.json", says="no such file; expected a plan or a traced step")
        self.refuse("explain", self.file("a.json", "[[1,"), says=("a.json'", "byte 5: found text that is not valid JSON"))
        self.refuse("explain", self.file("b.json", '{"kind": "plan", "version": 1}'), says=("b.json'", "`graph`: found nothing"))
        self.refuse("explain", self.file("c.json", '{"kind": "graph", "version": 1, "ops": [{}]}'), says="`ops[0].name`: found nothing")
        self.refuse("explain", *SMALL_GPT, "--json", "/no/such/folder/x", says="--json")
        self.refuse("verify", "gpt", "--strategy", "per_blok", says=("strategy 'per_blok'", "per_block, none"))
        self.refuse("bench", "gpt", "--strategies", "none,zzz", says="strategy 'zzz'")
        self.refuse("train", "gpt", "--steps", 1, "--strategy", "", says="strategy ''")
        self.refuse("bench", "gpt", "--batch", 0, says="--batch")
        self.refuse("bench", "gpt", "--batch", 99999999, says=("batch 99999999", "expected 1 to"))
        self.refuse("bench", "gpt", "--batch", "9" * 30, says="--batch")
        self.refuse("bench", "mlp", "--vocab", 9, says=("vocab 9", "no such size"))
        self.refuse("bench", "gpt", "--width", 30, says="multiple of 4")
        self.refuse("bench", "gpt", "--dropout", 1, says="dropout 1")
        self.refuse("bench", "gpt", "--dropout", "nan", says="dropout nan")

    def test_text_files(self):
        def train(path, *more):
            return ["train", *SMALL_GPT, "--steps", 1, "--data", f"text:{path}", *more]

        self.refuse(*train(self.dir / "missing"), says=("missing'", "no such file"))
        self.refuse(*train(self.dir / "two\nlines"), says="two?lines': no such file")
        self.refuse(*train(self.dir), says="found a folder")
        self.refuse(*train(self.file("empty")), says=("found 0 bytes", "expected at least 33"))
        self.refuse(*train(self.file("short", b"x" * 32)), says="found 32 bytes")
        high = self.file("high", b"a" * 50 + b"\xff")
        self.refuse(*train(high, "--vocab", 128), says=("byte 255 at 50", "--vocab 256"))
        images = ["train", "resnet18", "--steps", 1]
        self.refuse(*images, "--data", f"text:{self.text()}", says="use gpt, gptsmall or lstm")
        for data in ("", "text", "text:", "txt:a", "cifar:b", ":"):
            self.refuse("train", *SMALL_GPT, "--steps", 1, "--data", data, says="expected text:FILE, cifar10:DIR")

    def test_cifar_files(self):
        train = ["train", "resnet18", "--image-size", 40, "--batch", 2, "--steps", 1, "--data", f"cifar10:{self.dir}"]
        self.refuse(*train, says="found no data_batch_*.bin")
        self.refuse(*train[:-1], "cifar10:/no/such/folder", says="not a folder")
        batch = self.file("data_batch_1.bin")
        self.refuse(*train, says=("found 0 bytes", "multiple of 3073"))
        batch.write_bytes(bytes(3073 + 5))
        self.refuse(*train, says="found 3078 bytes")
        batch.write_bytes(bytes([10]) + bytes(3072))
        self.refuse(*train, says="found label 10 at byte 0")
        batch.write_bytes(bytes(3073))
        self.refuse("train", "gpt", "--steps", 1, "--data", f"cifar10:{self.dir}", says="the model reads no images")
        self.refuse(*train, "--classes", 3, says="found 3 outputs")

    def test_mnist_files(self):
        train = ["train", "mlp", "--depth", 2, "--width", 16, "--batch", 2, "--steps", 1, "--data", f"mnist:{self.dir}"]
        self.refuse(*train, says="train-images-idx3-ubyte': no such file")
        self.file("train-images-idx3-ubyte.gz", b"x")
        self.refuse(*train, says="run gunzip")
        images = self.file("train-images-idx3-ubyte", b"abc")
        self.refuse(*train, says="found 3 bytes; expected at least 16")
        images.write_bytes(struct.pack(">4I", 0x801, 1, 2, 2) + bytes(4))
        self.refuse(*train, says="found magic number 0x00000801; expected 0x00000803")
        images.write_bytes(struct.pack(">4I", 0x803, 2**31, 2**31, 2**31))
        self.refuse(*train, says="found 0 bytes after the header")
        images.write_bytes(struct.pack(">4I", 0x803, 1, 2, 2) + bytes(4))
        labels = self.file("train-labels-idx1-ubyte", struct.pack(">2I", 0x801, 2) + bytes(2))
        self.refuse(*train, says="found 1 images and 2 labels")
        labels.write_bytes(struct.pack(">2I", 0x801, 1) + bytes([200]))
        self.refuse(*train, says="found label 200")

    def test_memory_limits(self):
        train = ["train", *SMALL_GPT, "--steps", 1, "--memory-limit"]
        for limit in ("much", "-5", "1e99GiB", "MiB"):
            self.refuse(*train, limit, says=limit)
        self.refuse(*train, "1KiB", says=("--memory-limit 1.0 KiB", "weights, gradients and optimizer"))

    def test_limits_that_nothing_fits(self):
        for command in ("max-batch", "advise"):
            limited = [command, *SMALL_GPT, "--memory-limit"]
            self.refuse(command, *SMALL_GPT, says="--memory-limit is required")
            self.refuse(*limited, "much", says="much")
            self.refuse(*limited, "900TiB", says=("--memory-limit 900.0 TiB", "found a machine with"))
            self.refuse(*limited, "1MiB", "--strategies", "zzz", says="strategy 'zzz'")
            self.refuse(*limited, "1MiB", "--json", "/no/such/folder/x", says="--json")
            self.refuse(*limited, "1MiB", "--optimizer", "adagrad", says="adagrad")
            self.refuse(*limited, "100KiB", says="parameters (135.5 KiB) do not fit, by 35.5 KiB")
            self.refuse(*limited, "200KiB", says=("parameters (135.5 KiB) would fit", "gradients (135.5 KiB) do not fit, by 71.0"))
            self.refuse(*limited, "400KiB", says=("gradients (135.5 KiB) would fit", "optimizer state (271.0 KiB) does not fit, by 142.0"))
            self.refuse(*limited, "560KiB", says=("the activations of batch 1 do not", "per_block", "above the limit"))
        self.refuse("max-batch", *SMALL_GPT, "--memory-limit", "9MiB", "--batch", 3, says=("--batch 3", "leave it out"))

    def test_segments_and_depths(self):
        self.refuse("segments", "resnet18", says=("model 'resnet18'", "no row of equal layers", "expected one of mlp, gpt"))
        self.refuse("segments", *SMALL_GPT, "--segments", 3, says=("--segments 3", "expected 1 to 2"))
        self.refuse("segments", *SMALL_GPT, "--segments", "1,0", says="--segments")
        for strategy in ("segments:0", "segments:11", "segments:", "segments:2x", "segments:-1"):
            self.refuse("bench", "mlp", "--strategies", strategy, says=(f"strategy '{strategy}'", "N from 1 to 10"))
        self.refuse("bench", "mlp", "--strategies", "segments:N", says="strategy 'segments:N'")
        self.refuse("bench", "resnet18", "--strategies", "segments", says="strategy 'segments'")
        self.refuse("bench", "mlp", "--depths", "2,x", says="--depths")
        self.refuse("bench", "mlp", "--depths", "2,5000", "--width", 8, "--iters", 1, says="depth 5000")
        self.refuse("bench", "mlp", "--depths", 2, "--depth", 3, says=("--depth 3", "leave one out"))
        self.refuse("bench", "resnet18", "--depths", 2, says=("depth 2", "no such size"))

    def test_documents_to_draw(self):
        page = self.file("page.html", "as it was")
        sample = Path(__file__).parent.parent / "report/samples/sample_bench.json"
        self.refuse("report", says="FILES")
        self.refuse("report", sample, says="--html is required")
        self.refuse("report", sample, "--html", self.dir, says="--html")
        self.refuse("report", sample, "--html", "/no/such/folder/x", says="create it")
        self.refuse("report", self.dir / "none.json", "--html", page, says="no such file")
        self.refuse("report", self.file("not.json", "{"), "--html", page, says=("not.json", "found invalid JSON at byte"))
        self.refuse("report", sample, self.file("list.json", "[]"), "--html", page, says="list.json': the document: found a list")
        self.refuse("report", self.file("kind.json", '{"kind": "train"}'), "--html", page,
                    says=('found kind "train" without a version', "expected one to draw, version 1 of kind advice, bench"))
        broken = sample.read_text().replace('"peak_bytes":', '"peak":', 1)
        self.refuse("report", self.file("broken.json", broken), "--html", page,
                    says=("broken.json'", "`strategies[0].peak_bytes`: found nothing"))
        self.assertEqual(page.read_text(), "as it was")

    def test_outputs_that_cannot_be_written(self):
        for option in ("--json", "--save"):
            train = ["train", *SMALL_GPT, "--steps", 1, option]
            self.refuse(*train, self.dir, says=option)
            self.refuse(*train, self.dir / "no" / "file", says=("expected an existing folder", option))
        self.refuse("bench", *SMALL_GPT, "--json", self.dir, says="--json")

    def test_states_to_resume(self):
        def train(path, *more, model=SMALL_GPT):
            return ["train", *model, "--steps", 9, "--resume", path, *more]

        self.refuse(*train(self.dir / "missing"), says="no such file")
        self.refuse(*train(self.file("empty")), says="found an empty file")
        self.refuse(*train(self.file("noise", os.urandom(999))), says=("found 999 bytes", "train --save"))
        state = self.dir / "state"
        self.succeed("train", *SMALL_GPT, "--steps", 2, "--save", state)
        whole = state.read_bytes()
        for kept in (1, 100, len(whole) // 2, len(whole) - 1):
            self.refuse(*train(self.file("cut", whole[:kept])), says="not a whole state file")
        self.refuse(*train(state, model=["gptsmall"]), says="found sizes")
        self.refuse(*train(state, model=["mlp"]), says='found model "gptsmall", this run has "mlp"')
        self.refuse(*train(state, "--optimizer", "sgd"), says="found optimizer")
        self.refuse(*train(state, "--accumulate", 2), says="found accumulate 1, this run has 2")
        self.refuse(*train(state, "--ranks", 2), says="found ranks 1, this run has 2")
        self.refuse(*train(state, "--schedule", "cosine"), says="found schedule")
        self.refuse("train", *SMALL_GPT, "--steps", 2, "--resume", state, says="at step 2 already")

    def test_reports_to_compare(self):
        self.refuse("compare", "a.json", says="FILES")
        self.refuse("compare", self.dir / "a", self.dir / "b", says="no such file")
        self.refuse("compare", self.file("a"), self.file("b"), says="found an empty file")
        self.refuse("compare", self.file("a", "{nope"), self.file("b"), says="found invalid JSON at byte")
        self.refuse("compare", self.file("a", '{"kind": "train", "version": 1}'), self.file("b"), says="found JSON of something else")

    def test_documents_of_another_kind_or_a_newer_version(self):
        sample = json.loads((Path(__file__).parent.parent / "report/samples/sample_bench.json").read_text())
        step = {"kind": "graph", "version": 1, "ops": [], "values": []}
        page = self.dir / "page.html"
        readers = (  # command, what follows the file, a document that it reads, what it says of others
            ("compare", [self.dir / "b.json"], {"kind": "train", "version": 1}, 'expected kind "train" version 1'),
            ("report", ["--html", page], sample, "expected "),
            ("explain", [], {"kind": "plan", "version": 1}, 'expected kind "plan" version 1 or kind "graph" version 1'),
            ("explain", [], step, 'expected kind "plan" version 1 or kind "graph" version 1'),
            ("plan", ["--budget", 0.5], step, 'expected kind "graph" version 1 or kind "batches" version 1'),
            ("plan", ["--budget", 0.5], {"kind": "batches", "version": 1}, 'expected kind "graph" version 1 or kind "batches" version 1'),
            ("pareto", [], step, 'expected kind "graph" version 1 or kind "batches" version 1'),
        )
        for command, more, document, expected in readers:
            for changes, found in (({"kind": "letter"}, 'found kind "letter" version 1'), ({"kind": None}, "found "),
                                   ({"version": 2}, f'found kind "{document["kind"]}" version 2'),
                                   ({"version": "1"}, f'found kind "{document["kind"]}" version "1"')):
                with self.subTest(command=command, kind=document["kind"], changes=changes):
                    file = self.file("a.json", json.dumps({**document, **changes}))
                    self.refuse(command, file, *more, says=("a.json'", found, expected))
            without = {name: value for name, value in document.items() if name != "version"}
            self.refuse(command, self.file("a.json", json.dumps(without)), *more, says=f'found kind "{document["kind"]}" without a version')
        schedule = {"kind": "schedule", "version": 2, "graph": "0", "places": []}
        inner = {"kind": "plan", "version": 1, "graph": {**step, "version": 3}, "schedule": schedule}
        self.refuse("explain", self.file("a.json", json.dumps(inner)), says=('found kind "graph" version 3', 'expected kind "graph" version 1'))


class TrainTest(CliTest):
    def train(self, name, *args, model=SMALL_GPT):
        report = self.dir / f"{name}.json"
        self.succeed("train", *model, *args, "--json", report)
        return json.loads(report.read_text())

    def test_loss_falls_and_the_report_is_whole(self):
        report = self.train("a", "--steps", 40, "--data", f"text:{self.text()}", "--lr", 0.01)
        self.assertEqual((report["kind"], report["version"], report["status"]), ("train", 1, "done"))
        self.assertEqual(len(report["losses"]), 40)
        self.assertLess(report["losses"][-1], report["losses"][0] - 1)
        for loss, bits in zip(report["losses"], report["loss_bits"]):
            self.assertEqual(struct.unpack(">f", bytes.fromhex(bits[2:]))[0], loss)
        for key in ("peak_bytes", "step_ms_median", "units_per_second"):
            self.assertGreater(report[key], 0)
        self.assertIsNone(report["memory_limit_bytes"])

    def test_strategies_give_the_same_losses(self):
        args = ["--steps", 5, "--data", f"text:{self.text()}", "--seed", 3]
        plain = self.train("plain", *args)
        other = self.train("refrain", *args, "--strategy", "per_block")
        self.assertEqual(plain["loss_bits"], other["loss_bits"])
        self.assertLess(other["peak_bytes"], plain["peak_bytes"])
        out = self.succeed("compare", self.dir / "plain.json", self.dir / "refrain.json")
        self.assertIn("5 of 5 equal to the bit", out)

    def test_compare_finds_differences(self):
        self.train("a", "--steps", 3)
        self.train("b", "--steps", 3, "--seed", 1)
        result = refrain("compare", self.dir / "a.json", self.dir / "b.json", "--json", "-")
        self.assertEqual(result.returncode, 1)
        answer = json.loads(result.stdout)
        self.assertEqual((answer["kind"], answer["version"]), ("compare", 1))
        self.assertFalse(answer["equal"])
        self.assertEqual(answer["runs"][1]["first_difference"], 1)

    def test_resume_goes_on_to_the_bit(self):
        for optimizer in ("adam", "adamw", "sgd"):
            args = ["--data", f"text:{self.text()}", "--optimizer", optimizer, "--strategy", "per_block"]
            whole = self.train("whole", *args, "--steps", 6)
            state = self.dir / f"state-{optimizer}"
            first = self.train("first", *args, "--steps", 3, "--save", state)
            rest = self.train("rest", *args, "--steps", 6, "--resume", state)
            self.assertEqual(rest["first_step"], 3)
            self.assertEqual(first["loss_bits"] + rest["loss_bits"], whole["loss_bits"])

    def test_resume_keeps_batchnorm_statistics(self):
        model = ["unet", "--image-size", 16, "--width", 4]
        whole = self.train("whole", "--steps", 6, model=model)
        self.train("first", "--steps", 3, "--save", self.dir / "state", model=model)
        rest = self.train("rest", "--steps", 6, "--resume", self.dir / "state", model=model)
        self.assertEqual(rest["loss_bits"], whole["loss_bits"][3:])

    def test_memory_limit(self):
        args = ["--steps", 3, "--data", f"text:{self.text()}"]
        model = ["gptsmall", "--seq", 128, "--batch", 4, "--width", 32]
        plain = self.train("plain", *args, model=model)
        limit = plain["peak_bytes"] * 60 // 100
        state, report = self.dir / "state", self.dir / "limited.json"
        self.refuse("train", *model, *args, "--memory-limit", limit, "--save", state, "--json", report, code=3,
                    says=("out of memory: requested", "in use", "limit", "--strategy per_block"))
        self.assertFalse(state.exists())
        self.assertEqual(json.loads(report.read_text())["status"], "out_of_memory")
        within = self.train("within", *args, "--memory-limit", limit, "--strategy", "per_block", model=model)
        self.assertLessEqual(within["peak_bytes"], limit)
        self.assertEqual(within["loss_bits"], plain["loss_bits"])
        out = self.succeed("compare", *(self.dir / f"{name}.json" for name in ("plain", "limited", "within")))
        self.assertIn("out of memory at step 1", out)

    def test_a_failed_run_leaves_the_saved_file_as_it_was(self):
        state = self.dir / "state"
        self.succeed("train", *SMALL_GPT, "--steps", 1, "--save", state)
        before = state.read_bytes()
        self.refuse("train", *SMALL_GPT, "--steps", 1, "--save", state, "--memory-limit", "1KiB")
        self.assertEqual(state.read_bytes(), before)
        self.assertEqual([p.name for p in self.dir.iterdir()], ["state"])

    def test_image_data(self):
        self.file("data_batch_1.bin", b"".join(bytes([i]) + os.urandom(3072) for i in range(10)))
        self.file("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 10, 28, 28) + os.urandom(7840))
        self.file("train-labels-idx1-ubyte", struct.pack(">2I", 0x801, 10) + bytes(range(10)))
        models = (["resnet18", "--image-size", 40, "--classes", 10, "--batch", 2], ["unet", "--image-size", 16],
                  ["mlp", "--depth", 2, "--width", 16])
        for model in models:
            for data in ("cifar10", "mnist"):
                report = self.train("images", "--steps", 2, "--data", f"{data}:{self.dir}", model=model)
                self.assertTrue(all(map(math.isfinite, report["losses"])), (model, data))


class FullLoopTest(CliTest):
    """Several ranks, accumulation, clipping, schedules; resuming after a kill."""

    train = TrainTest.train
    ONE_THREAD = ["--threads", 1]

    def test_ranks_are_batches_of_one_step(self):
        args = ["--steps", 5, "--data", f"text:{self.text()}", "--lr", 0.01, "--dropout", 0, *self.ONE_THREAD]
        joined = self.train("joined", *args, "--accumulate", 2)
        ranks = self.train("ranks", *args, "--ranks", 2)
        # halves of two gradients add up to the same bits in both
        self.assertEqual(ranks["loss_bits"], joined["loss_bits"])
        self.assertEqual((ranks["ranks"], ranks["accumulate"]), (2, 1))
        both = self.train("both", *args, "--ranks", 2, "--accumulate", 2)
        four = self.train("four", *args, "--accumulate", 4)
        for a, b in zip(both["losses"], four["losses"]):
            self.assertAlmostEqual(a, b, delta=1e-5)
        self.assertNotEqual(both["loss_bits"], ranks["loss_bits"])

    def test_strategies_give_the_same_losses_on_ranks(self):
        args = ["--steps", 3, "--ranks", 2, "--accumulate", 2, "--dropout", 0.1, "--clip-norm", 0.5, *self.ONE_THREAD]
        plain = self.train("plain", *args)
        for strategy in ("per_block", "selective"):
            self.assertEqual(self.train("other", *args, "--strategy", strategy)["loss_bits"], plain["loss_bits"])

    def test_clipping_schedule_and_decay_have_effect(self):
        args = ["--steps", 6, "--optimizer", "sgd", "--lr", 0.5, *self.ONE_THREAD]
        seen = {name: self.train("run", *args, *more)["loss_bits"] for name, more in {
            "plain": [], "clip": ["--clip-norm", 1e-3], "cosine": ["--schedule", "cosine"],
            "warmup": ["--warmup", 3], "min": ["--schedule", "cosine", "--min-lr", 0.4],
            "decay": ["--weight-decay", 0.1]}.items()}
        self.assertEqual(len({tuple(bits) for bits in seen.values()}), len(seen))
        for name, bits in seen.items():
            self.assertEqual(bits[0], seen["plain"][0], name)  # the first loss is before any step

    def test_epochs_see_every_example_once(self):
        """While weights hardly move, the mean loss of an epoch does not depend on its order."""
        self.file("data_batch_1.bin", b"".join(bytes([i]) + os.urandom(3072) for i in range(10)))
        model = ["mlp", "--depth", 2, "--width", 16, "--batch", 2]
        args = ["--data", f"cifar10:{self.dir}", "--lr", 1e-12, "--optimizer", "sgd"]

        def means(report, steps):
            losses = report["losses"]
            return [sum(losses[i:i + steps]) / steps for i in range(0, len(losses), steps)]

        report = self.train("epochs", *args, "--epochs", 3, model=model)
        self.assertEqual(report["steps"], 15)
        self.assertNotEqual(report["losses"][:5], report["losses"][5:10])
        for mean in means(report, 5)[1:]:
            self.assertAlmostEqual(mean, means(report, 5)[0], delta=1e-5)
        random_means = means(self.train("random", *args, "--steps", 15, model=model), 5)
        self.assertGreater(max(random_means) - min(random_means), 1e-4)
        ranks = self.train("ranks", *args, "--epochs", 4, "--ranks", 2, model=model)
        self.assertEqual(ranks["steps"], 10)
        self.assertAlmostEqual(sum(ranks["losses"]) / 10, means(report, 5)[0], delta=1e-5)
        text = self.train("text", "--epochs", 1, "--data", f"text:{self.text()}", "--batch", 2)
        self.assertEqual(text["steps"], math.ceil((45 * 60 - 1) // 32 / 2))

    def test_resume_with_everything_goes_on_to_the_bit(self):
        state = self.dir / "state"
        for ranks in (1, 2):
            args = ["--data", f"text:{self.text()}", "--strategy", "per_block", "--ranks", ranks, "--accumulate", 2, "--lr",
                    0.003, "--clip-norm", 1, "--schedule", "cosine", "--warmup", 2, "--dropout", 0.1, "--steps", 8,
                    "--amp", "f16", "--weight-decay", 0.1, *self.ONE_THREAD]
            whole = self.train("whole", *args)
            state.unlink(missing_ok=True)
            self.killed(4, 0, *args, "--save", state, "--save-every", 3)
            rest = self.train("rest", *args, "--resume", state)
            self.assertIn(rest["first_step"], (3, 6))
            self.assertEqual(rest["loss_bits"], whole["loss_bits"][rest["first_step"]:])

    def killed(self, step, delay, *args, rank=None):
        """Kills a run `delay` seconds after it has done `step` steps: all of it, or one of its ranks."""
        run = subprocess.Popen([BIN, "train", *map(str, [*SMALL_GPT, *args])], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE)
        for line in run.stdout:
            done = re.match(r"step (\d+)/", line)
            if done and int(done[1]) >= step:
                break
        time.sleep(delay)
        if rank is None:
            run.kill()
        else:
            ranks = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
            self.assertEqual(len(ranks), 2)
            os.kill(int(ranks[rank]), signal.SIGKILL)
        _, error = run.communicate(timeout=20)
        self.assertEqual(run.returncode, -9 if rank is None else 137, error)
        if rank is not None:
            self.assertIn(f"refrain: rank {rank} of 2 was killed by signal 9", error)

    def test_resume_after_kills_at_random_moments(self):
        """With a file after each step, a kill often comes while it is written; the run goes on from what is there."""
        chance = random.Random(7)
        state = self.dir / "state"
        for ranks, kills in ((1, (None,) * 5), (2, (None, 0, 1, None, 1))):
            state.unlink(missing_ok=True)
            args = ["--data", f"text:{self.text()}", "--steps", 400, "--ranks", ranks, "--dropout", 0.1, *self.ONE_THREAD]
            whole = self.train("whole", *args)
            resume = []
            for i, rank in enumerate(kills):
                self.killed(60 * i + 20, chance.random() * 0.05, *args, "--save", state, "--save-every", 1, *resume, rank=rank)
                resume = ["--resume", state]
            rest = self.train("rest", *args, *resume)
            self.assertGreater(rest["first_step"], 250)
            self.assertEqual(rest["loss_bits"], whole["loss_bits"][rest["first_step"]:])

    def test_a_failing_rank_zero_is_the_one_that_is_named(self):
        full = "/dev/full"
        self.refuse("train", *SMALL_GPT, "--steps", 2, "--ranks", 2, "--save", full, says="--save")
        self.refuse("train", *SMALL_GPT, "--steps", 2, "--ranks", 2, "--data", "text:/no/such", says="no such file")
        self.refuse("train", *SMALL_GPT, "--steps", 2, "--ranks", 2, "--batch", 99999999, says="batch 99999999")


class LaunchTest(CliTest):
    def shell(self, *args, script, timeout=30):
        return subprocess.run([BIN, "launch", *map(str, args), "--", "sh", "-c", script], capture_output=True, text=True,
                              timeout=timeout)

    def test_bad_input(self):
        self.refuse("launch", "--", "true", says="--ranks")
        self.refuse("launch", "-n", 0, "--", "true", says="--ranks")
        self.refuse("launch", "-n", 2, says="PROGRAM")
        self.refuse("launch", "-n", 2, "--", "/no/such/program", says=("'/no/such/program'", "No such file"))
        self.refuse("launch", "-n", 2, "--", self.file("data"), says="Permission denied")

    def test_ranks_know_who_they_are(self):
        names = "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT ${OMP_NUM_THREADS:+set}"
        result = self.shell("-n", 3, script=f'echo "{names}"; echo "err $RANK" >&2; cat')
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = sorted(result.stdout.splitlines())
        ports = {line.split()[6] for line in lines}
        self.assertEqual(len(ports), 1)
        self.assertEqual(lines, [f"[{i}] {i} {i} 3 3 127.0.0.1 {min(ports)} set" for i in range(3)])
        self.assertEqual(sorted(result.stderr.splitlines()), [f"[{i}] err {i}" for i in range(3)])
        self.assertIn(" 4711 ", self.shell("-n", 1, "--port", 4711, script=f'echo "{names}"').stdout)

    def test_a_rank_that_fails_ends_the_job_with_its_last_lines(self):
        begin = time.monotonic()
        result = self.shell("-n", 3, script='echo "all is well"; [ $RANK = 1 ] || exec sleep 60; '
                                            'for i in $(seq 40); do echo "line $i" >&2; done; exit 7')
        self.assertLess(time.monotonic() - begin, 4)
        self.assertEqual(result.returncode, 7)
        end = result.stderr.split("Last lines of rank 1:\n")[1].splitlines()
        self.assertEqual(end[:-1], [f"  line {i}" for i in range(21, 41)])
        self.assertEqual(end[-1], "refrain: rank 1 of 3 exited with code 7; the others were stopped")

    def test_a_rank_that_is_killed(self):
        result = self.shell("-n", 2, script="[ $RANK = 0 ] || kill -9 $$; exec sleep 60")
        self.assertEqual(result.returncode, 137)
        self.assertIn("refrain: rank 1 of 2 was killed by signal 9 (Killed)", result.stderr)

    def test_the_first_cause_is_named(self):
        result = self.shell("-n", 3, script="[ $RANK = 2 ] && kill -SEGV $$; exit 5")
        self.assertEqual(result.returncode, 128 + 11)
        result = self.shell("-n", 3, script="[ $RANK = 2 ] && exit 4; exit 5")
        self.assertEqual(result.returncode, 4)

    def test_ranks_that_will_not_stop_are_killed(self):
        begin = time.monotonic()
        result = self.shell("-n", 2, script="trap '' TERM; [ $RANK = 0 ] && exit 3; while :; do sleep 1; done")
        self.assertEqual(result.returncode, 3)
        self.assertLess(time.monotonic() - begin, 8)

    def running(self, mark):
        return subprocess.run(["pgrep", "-f", mark], capture_output=True, text=True).stdout.split()

    def launch_sleepers(self, mark):
        run = subprocess.Popen([BIN, "launch", "-n", "2", "--", "sh", "-c", f"echo up; sleep {mark}; true"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2):
            self.assertRegex(run.stdout.readline(), r"\[\d\] up")
        return run

    def test_interrupted(self):
        run = self.launch_sleepers("61.25")
        run.send_signal(signal.SIGINT)
        _, error = run.communicate(timeout=10)
        self.assertEqual((run.returncode, error), (130, "refrain: stopped by signal 2 (Interrupt)\n"))
        self.assertEqual(self.running("sleep 61.25"), [])

    def test_no_rank_outlives_the_launcher(self):
        run = self.launch_sleepers("61.5")
        ranks = self.running("echo up; sleep 61.5; true")
        run.kill()
        run.communicate(timeout=10)
        time.sleep(0.5)
        left = set(self.running("echo up; sleep 61.5; true")) & set(ranks)
        for pid in self.running("sleep 61.5"):  # of a shell: no rank, and not told
            os.kill(int(pid), signal.SIGKILL)
        self.assertEqual(left, set())

    def test_training_by_launch_is_training_with_ranks(self):
        args = ["train", *map(str, SMALL_GPT), "--steps", "3", "--threads", "1", "--json"]
        self.succeed(*args, self.dir / "ranks.json", "--ranks", 2)
        self.succeed("launch", "-n", 2, "--", BIN, *args, self.dir / "launch.json")
        a, b = (json.loads((self.dir / f"{name}.json").read_text()) for name in ("ranks", "launch"))
        self.assertEqual(a["loss_bits"], b["loss_bits"])
        result = refrain("launch", "-n", 2, "--", BIN, *args, "-", "--ranks", 3)
        self.assertEqual(result.returncode, 2)
        self.assertIn("--ranks 3: found a process that a launcher started as one of 2", result.stderr)


class AmpTest(CliTest):
    def test_strategies_change_no_bit(self):
        for amp in ("bf16", "f16"):
            for strategy in ("all", "selective:matmuls"):
                self.succeed("verify", *SMALL_GPT, "--amp", amp, "--strategy", strategy)

    def test_bench_compares_under_the_same_autocast(self):
        bench = ["bench", *SMALL_GPT, "--strategies", "none,checkpoint,selective:matmuls", "--iters", 1, "--warmup", 0]
        plain, mixed = (json.loads(self.succeed(*bench, *more, "--json", "-")) for more in ([], ["--amp", "bf16"]))
        self.assertNotIn("amp", plain["config"])
        self.assertEqual(mixed["config"]["amp"], "bf16")
        self.assertEqual([s["name"] for s in mixed["strategies"]], ["none", "checkpoint", "selective:matmuls"])
        self.assertTrue(all(s["bit_equal"] for s in mixed["strategies"]))
        self.assertLess(mixed["strategies"][0]["after_forward_bytes"], plain["strategies"][0]["after_forward_bytes"])
        self.assertIn("gptsmall with bf16 autocast", self.succeed(*bench, "--amp", "bf16"))

    def test_float16_trains_with_a_scaled_loss_and_resumes_to_the_bit(self):
        def train(name, steps, *more):
            report = self.dir / f"{name}.json"
            self.succeed("train", *SMALL_GPT, "--amp", "f16", "--steps", steps, "--json", report, *more)
            return json.loads(report.read_text())

        state = self.dir / "state"
        whole, first = train("whole", 6), train("first", 3, "--save", state)
        rest = train("rest", 6, "--resume", state)
        self.assertEqual(whole["loss_bits"], first["loss_bits"] + rest["loss_bits"])
        self.assertEqual(whole["loss_scale"], rest["loss_scale"])
        self.refuse("train", *SMALL_GPT, "--steps", 6, "--resume", state, says=('"amp":"f16"', "give the same options"))

    def test_other_commands(self):
        limit = ["--memory-limit", "12MiB", "--strategies", "none,checkpoint"]
        for command, *more in (["explain"], ["timeline", "--iters", 1], ["breakdown"], ["max-batch", *limit]):
            document = json.loads(self.succeed(command, *SMALL_GPT, "--amp", "f16", *more, "--json", "-"))
            self.assertEqual(document["config"]["amp"], "f16", command)

    def test_bad_input(self):
        self.refuse("bench", *SMALL_GPT, "--amp", "fp8", says=("--amp", "fp8", "bf16"))
        self.refuse("bench", *SMALL_GPT, "--strategies", "selective:matmul", says="one of matmuls, ")
        self.refuse("bench", "mlp", "--strategies", "selective:matmuls", says="strategy 'selective:matmuls' for model mlp")


class OffloadTest(CliTest):
    MODEL = ["gptsmall", "--depth", 2]

    def test_bench_shows_what_was_written_and_read(self):
        args = [*self.MODEL, "--iters", 1, "--strategies", "checkpoint,offload:disk", "--offload-dir", self.dir]
        self.assertIn("written", self.succeed("bench", *args))
        rows = {row["name"]: row for row in json.loads(self.succeed("bench", *args, "--json", "-"))["strategies"]}
        self.assertNotIn("offload", rows["checkpoint"])
        offload = rows["offload:disk"]["offload"]
        self.assertGreater(offload["written_bytes"], 0)
        self.assertGreater(offload["values"], 0)
        self.assertEqual(offload["refused"], 0)
        self.assertTrue(rows["offload:disk"]["bit_equal"])
        self.assertEqual(list(self.dir.iterdir()), [], "the file has no name")

    def test_train_and_timeline(self):
        losses = []
        for strategy in ("none", "offload:disk", "offload:host"):
            report = self.dir / "report.json"
            self.succeed("train", *self.MODEL, "--steps", 3, "--strategy", strategy, "--offload-dir", self.dir, "--json", report)
            document = json.loads(report.read_text())
            losses.append(document["losses"])
            self.assertEqual("offload" in document, strategy != "none")
        self.assertEqual(losses[0], losses[1])
        self.assertEqual(losses[0], losses[2])
        self.succeed("timeline", *self.MODEL, "--strategy", "offload:disk", "--iters", 1)

    def test_bad_input(self):
        self.refuse("bench", *self.MODEL, "--strategies", "offload:tape", says=("offload:tape", "offload:disk"))
        self.refuse("verify", *self.MODEL, "--strategy", "offload:disk", "--offload-dir", self.dir / "none",
                    says=("cannot make a file", "No such file"))


class LimitTest(CliTest):
    MODEL = ["gptsmall", "--depth", 3, "--seq", 64, "--width", 32, "--threads", 1]

    def measure(self, command, *args):
        return json.loads(self.succeed(command, *self.MODEL, *args, "--json", "-"))

    def test_max_batch_is_the_largest_that_trains(self):
        limit = 12 * 1024 * 1024
        report = self.measure("max-batch", "--memory-limit", limit)
        self.assertEqual((report["kind"], report["version"], report["limit_bytes"]), ("max_batch", 1, limit))
        plain = report["rows"][0]
        self.assertEqual([r["strategy"] for r in report["rows"]], ["none", "per_block", "selective"])
        for row in report["rows"]:
            self.assertLessEqual(row["peak_bytes"], limit)
            self.assertGreater(row["next_peak_bytes"], limit)
            self.assertAlmostEqual(row["factor"], row["max_batch"] / plain["max_batch"])
            fits = {t["batch"]: t["fits"] for t in row["trials"]}
            self.assertTrue(fits[row["max_batch"]])
            self.assertFalse(fits[row["max_batch"] + 1])
            self.assertLess(len(row["trials"]), 11)
            train = ["train", *self.MODEL, "--steps", 3, "--strategy", row["strategy"], "--memory-limit", limit, "--batch"]
            trained = json.loads(self.succeed(*train, row["max_batch"], "--json", "-"))
            self.assertEqual(trained["peak_bytes"], row["peak_bytes"])
            self.refuse(*train, row["max_batch"] + 1, code=3, says="out of memory")
        self.assertGreater(report["rows"][1]["factor"], 2)

    def test_advise_when_it_fits(self):
        report = self.measure("advise", "--memory-limit", "20MiB", "--iters", 1)
        self.assertEqual((report["kind"], report["version"], report["fits_plainly"]), ("advice", 1, True))
        self.assertEqual(report["choice"]["strategy"], "none")
        self.assertIn("checkpointing would only add time", " ".join(report["reasons"]))
        self.assertEqual([c["strategy"] for c in report["candidates"]], ["none", "per_block", "selective"])
        fields = {"strategy", "fits", "peak_bytes", "peak_is_predicted", "resident_peak_bytes", "overhead", "max_batch"}
        for candidate in report["candidates"]:
            self.assertEqual(set(candidate), fields)
        self.assertEqual(set(report["choice"]), fields | {"batch", "command", "code"})

    def test_advise_when_checkpointing_makes_it_fit(self):
        report = self.measure("advise", "--batch", 24, "--memory-limit", "12MiB", "--iters", 1, "--strategies", "per_block")
        plain, per_block = report["candidates"]
        self.assertFalse(report["fits_plainly"] or plain["fits"])
        self.assertGreater(plain["peak_bytes"], report["limit_bytes"])
        choice = report["choice"]
        self.assertEqual((choice["strategy"], choice["batch"], choice["fits"]), ("per_block", 24, True))
        self.assertIn("refrain::checkpoint(block, x)", choice["code"])
        self.assertIn("gradients accumulated", " ".join(report["reasons"]))
        command = choice["command"].replace("--steps 100", "--steps 2").split()
        trained = json.loads(self.succeed(*command[1:], "--json", "-"))
        self.assertEqual(trained["peak_bytes"], choice["peak_bytes"])

    def test_advise_when_nothing_fits_the_batch(self):
        report = self.measure("advise", "--batch", 200, "--memory-limit", "12MiB", "--iters", 1)
        choice = report["choice"]
        self.assertFalse(choice["fits"])
        self.assertEqual((choice["strategy"], choice["batch"]), ("per_block", choice["max_batch"]))
        self.assertIn("no strategy fits batch 200", " ".join(report["reasons"]))

    def test_pages(self):
        runs = (["max-batch", *SMALL_GPT, "--memory-limit", "2MiB"], ["segments", *SMALL_GPT, "--iters", 1],
                ["advise", *SMALL_GPT, "--memory-limit", "2MiB", "--iters", 1],
                ["bench", "gptsmall", "--seq", 32, "--width", 32, "--depths", 2, "--iters", 1])
        for run in runs:
            page = self.dir / f"{run[0]}.html"
            self.succeed(*run, "--html", page)
            self.assertIn("gptsmall", page.read_text())


class MemoryCapTest(CliTest):
    """train --strategy auto, bench --limits."""

    MODEL = ["gptsmall", "--depth", 3, "--seq", 64, "--width", 32, "--threads", 1]
    BENCH = ["bench", *MODEL, "--iters", 1, "--warmup", 0, "--limits"]

    def train(self, name, *args):
        return TrainTest.train(self, name, *args, model=self.MODEL)

    def bench(self, *args):
        return json.loads(self.succeed(*self.BENCH, *args, "--json", "-"))

    def test_train_keeps_to_the_limit_and_changes_no_bit(self):
        args = ["--steps", 5, "--data", f"text:{self.text()}", "--lr", 0.01]
        plain = self.train("plain", *args)
        limit = plain["peak_bytes"] * 60 // 100
        within = ["--memory-limit", limit]
        self.refuse("train", *self.MODEL, *args, *within, code=3, says=("out of memory", "--strategy per_block or auto"))
        auto = self.train("auto", *args, *within, "--strategy", "auto")
        self.assertEqual((auto["status"], auto["strategy"], auto["memory_limit_bytes"]), ("done", "auto", limit))
        self.assertLessEqual(auto["peak_bytes"], limit)
        self.assertGreater(auto["peak_bytes"], limit * 0.8, "what fits stays")
        self.assertEqual(auto["loss_bits"], plain["loss_bits"])
        out = self.succeed("compare", self.dir / "plain.json", self.dir / "auto.json")
        self.assertRegex(out, r"auto +auto .* 5 of 5 equal to the bit")

    def test_a_limit_of_resident_bytes_is_kept_and_changes_no_bit(self):
        model = ["gptsmall", "--batch", 32, "--threads", 1]
        args = ["--steps", 3, "--data", f"text:{self.text()}"]
        plain = TrainTest.train(self, "plain", *args, model=model)
        self.assertGreater(plain["resident_peak_bytes"], plain["peak_bytes"])
        if plain["heap"] == "malloc":
            self.refuse("train", *model, *args, "--strategy", "auto", "--process-limit", "4GiB", code=4, says="REFRAIN_TENSOR_HEAP")
            return
        limit = plain["resident_peak_bytes"] - plain["peak_bytes"] // 3
        within = TrainTest.train(self, "within", *args, "--strategy", "auto", "--process-limit", limit, model=model)
        self.assertEqual((within["process_limit_bytes"], within["memory_limit_bytes"]), (limit, None))
        self.assertLessEqual(within["resident_peak_bytes"], limit)
        self.assertEqual(within["loss_bits"], plain["loss_bits"])
        self.refuse("train", *model, *args, "--process-limit", limit, code=3, says=("limit of the process", "raise --process-limit"))
        self.refuse("train", *model, *args, "--process-limit", "30MiB", code=3, says=("limit of the process", "are missing"))
        free = TrainTest.train(self, "free", *args, "--strategy", "auto", "--available", 0.9, model=model)
        self.assertGreater(free["process_limit_bytes"], 0)
        self.assertEqual(free["loss_bits"], plain["loss_bits"])

    def test_train_with_everything_else_and_resume(self):
        args = ["--data", f"text:{self.text()}", "--accumulate", 2, "--clip-norm", 1, "--optimizer", "sgd", "--steps"]
        plain = self.train("plain", *args, 6)
        auto = ["--strategy", "auto", "--memory-limit", plain["peak_bytes"] * 60 // 100]
        state = self.dir / "state"
        first = self.train("first", *args, 3, *auto, "--save", state)
        rest = self.train("rest", *args, 6, *auto, "--resume", state)
        self.assertEqual(first["loss_bits"] + rest["loss_bits"], plain["loss_bits"])

    def test_train_bad_input(self):
        train = ["train", *self.MODEL, "--steps", 2, "--strategy"]
        self.refuse(*train, "auto", says=("--strategy auto", "found no --memory-limit", "300MiB"))
        self.refuse(*train, "atuo", "--memory-limit", "9MiB", says="strategy 'atuo'")
        self.refuse(*train, "auto", "--memory-limit", "much", says="much")
        self.refuse(*train, "auto", "--process-limit", "much", says="much")
        self.refuse(*train, "auto", "--available", 1.5, says="--available")
        self.refuse(*train, "auto", "--available", 0.5, "--process-limit", "1GiB", says="excludes")
        self.refuse(*train, "auto", "--memory-limit", "1KiB", says=("--memory-limit 1.0 KiB", "weights, gradients and optimizer"))
        self.refuse("verify", *self.MODEL, "--strategy", "auto", says="strategy 'auto'")
        self.refuse("bench", *self.MODEL, "--strategies", "auto", says="strategy 'auto'")

    def test_train_says_what_is_missing(self):
        # the fixed cost fits, one operator's inputs and outputs beside it do not
        model = ["train", "gptsmall", "--depth", 3, "--width", 32, "--steps", 1, "--json"]
        fixed = json.loads(self.succeed(*model, "-", "--batch", 1, "--seq", 8))["peak_bytes"]
        state, report = self.dir / "state", self.dir / "limited.json"
        self.refuse(*model, report, "--batch", 16, "--seq", 64, "--strategy", "auto", "--memory-limit", fixed,
                    "--save", state, code=3, says=("out of memory: requested", "in use and not evictable", "are missing"))
        self.assertFalse(state.exists())
        self.assertEqual(json.loads(report.read_text())["status"], "out_of_memory")

    def test_limits_json(self):
        report = self.bench("100%,70%,2%,70%")
        self.assertEqual((report["kind"], report["version"], report["model"]), ("limits", 1, "gptsmall"))
        self.assertGreater(report["base_bytes"], 0)
        peak = report["plain"]["peak_bytes"]
        self.assertGreater(report["plain"]["step_ms_median"], 0)
        self.assertEqual([row["percent"] for row in report["rows"]], [100, 70, 2], "each once")
        kept = {"percent", "heuristic", "limit_bytes", "fits", "peak_bytes", "resident_peak_bytes", "step_ms_median", "step_ms_spread", "added_ms_median",
                "overhead", "evictions", "evicted_bytes", "recomputes", "recompute_ms", "choosing_ms", "bit_equal"}
        *fitting, refused = report["rows"]
        for row in fitting:
            self.assertEqual(set(row), kept)
            self.assertEqual((row["fits"], row["bit_equal"], row["heuristic"]), (True, True, "h_dtr"))
            self.assertEqual(row["limit_bytes"], peak * row["percent"] // 100)
            self.assertLessEqual(row["peak_bytes"], row["limit_bytes"])
            self.assertAlmostEqual(row["overhead"], row["added_ms_median"] / report["plain"]["step_ms_median"])
        tight = fitting[1]
        self.assertGreaterEqual(tight["evicted_bytes"], peak - tight["limit_bytes"])
        self.assertGreater(tight["recomputes"], 0)
        self.assertEqual(set(refused), {"percent", "heuristic", "limit_bytes", "fits", "refused", "missing_bytes"})
        self.assertEqual((refused["fits"], refused["refused"]), (False, "memory"))
        self.assertGreater(refused["missing_bytes"], 0)

    def test_published_points_stand_beside_the_nearest_limit(self):
        report = self.bench("100%,60%,1%")
        point, = report["published"]
        self.assertEqual((point["method"], point["model"], point["overhead"]), ("DTR", "Transformer", 0.19))
        self.assertEqual(point["nearest_percent"], 60, "1 % is refused")
        self.assertEqual(point["nearest_overhead"], report["rows"][1]["overhead"])
        point, = self.bench("1%")["published"]
        self.assertIsNone(point["nearest_percent"])
        mlp = ["bench", "mlp", "--width", 64, "--batch", 64, "--iters", 1, "--limits", "100%"]
        self.assertEqual(json.loads(self.succeed(*mlp, "--json", "-"))["published"], [])
        self.assertNotIn("DTR", self.succeed(*mlp))

    def test_limits_in_text_and_on_a_page(self):
        path, page = self.dir / "limits.json", self.dir / "limits.html"
        out = self.succeed(*self.BENCH, "100%,2%", "--json", path, "--html", page)
        self.assertRegex(out, r"\nnone +\d")
        self.assertRegex(out, r"\n100 % .* yes\n2 % .* does not fit: [\d.]+ \w+ missing *\n")
        self.assertRegex(out, r"DTR, Transformer: 19 % overhead at 41 % .*; here -?\d+ % at 100 %")
        self.assertNotIn("heuristic", out)
        text = page.read_text()
        self.assertTrue(text == self.succeed("report", path, "--html", "-"))
        for part in ("Memory limits: gptsmall", "does not fit <small>", "DTR, Transformer"):
            self.assertTrue(part in text, part)

    def test_heuristics_are_compared_in_one_run(self):
        names = ["lru", "h_dtr", "largest", "msps"]
        report = self.bench("100%,70%", "--heuristics", ",".join([*names, "lru"]))
        self.assertEqual([(r["percent"], r["heuristic"]) for r in report["rows"]], [(p, n) for p in (100, 70) for n in names])
        rows = {r["heuristic"]: r for r in report["rows"] if r["percent"] == 70}
        for row in rows.values():
            self.assertTrue(row["fits"] and row["bit_equal"], row)
        self.assertLess(rows["largest"]["evictions"], rows["lru"]["evictions"])
        out = self.succeed(*self.BENCH, "70%", "--heuristics", "largest,lru")
        self.assertRegex(out, r"\nlimit +heuristic ")
        self.assertRegex(out, r"\n70 % +largest .*\n70 % +lru ")

    def test_a_cap_whose_recompute_time_exceeds_max_overhead_fails(self):
        row, = self.bench("40%", "--max-overhead", 0.01)["rows"]
        self.assertEqual((row["fits"], row["refused"]), (False, "time"))
        self.assertIn("exceeds max-overhead", self.succeed(*self.BENCH, "40%", "--max-overhead", 0.01))

    def test_limits_bad_input(self):
        for limit in ("0%", "1001%", "abc", "50", "50 %", "-5%", "1e2%", "%", "", "99999999999999999999%"):
            self.refuse(*self.BENCH, limit, says=("--limits '", "expected percentages of the baseline peak from 1% to 1000%"))
        self.refuse(*self.BENCH, says="--limits")
        self.refuse(*self.BENCH, "50%", "--strategies", "none", says=("--limits: found --strategies", "leave one out"))
        self.refuse(*self.BENCH, "50%", "--depths", "2,3", says=("--limits: found --depths", "leave one out"))
        self.refuse(*self.BENCH, "50%", "--heuristics", "mspss", says=("--heuristics 'mspss'", "expected one or more of msps, "))
        self.refuse(*self.BENCH, "50%", "--heuristics", "", says="--heuristics ''")
        self.refuse("bench", *self.MODEL, "--heuristics", "lru", says=("--heuristics", "--limits"))
        self.refuse("bench", *self.MODEL, "--max-overhead", 2, says=("--max-overhead", "--limits"))
        for most in (0, -1, "much"):
            self.refuse(*self.BENCH, "50%", "--max-overhead", most, says="--max-overhead")
        self.refuse(*self.BENCH, "50%", "--max-overhead", "nan", says="max_overhead")
        self.refuse(*self.BENCH, "50%", "--html", self.dir, says="--html")
        self.refuse(*self.BENCH, "50%", "--json", "/no/such/folder/x", says="--json")


class LeastLimitTest(CliTest):
    COMMAND = ["least-limit", *MemoryCapTest.MODEL, "--iters", 1, "--tolerance", 0.05]

    def test_the_least_limit_and_what_others_cost(self):
        report = json.loads(self.succeed(*self.COMMAND, "--multiples", "1,1.2,1.5", "--json", "-"))
        self.assertEqual((report["kind"], report["version"], report["model"]), ("least_limit", 1, "gptsmall"))
        base, least, peak = report["base_bytes"], report["limit_bytes"], report["plain"]["peak_bytes"]
        self.assertTrue(base <= report["refused_bytes"] < least < peak, report)
        self.assertLess(least - base, (peak - base) * 0.6)
        self.assertEqual([row["limit_bytes"] for row in report["rows"]], sorted({row["limit_bytes"] for row in report["rows"]}))
        first = report["rows"][0]
        self.assertEqual((first["limit_bytes"], first["fits"]), (least, True))
        self.assertLessEqual(first["peak_bytes"], least)
        self.assertGreater(first["recomputes"], 0)
        self.assertLess(first["resident_peak_bytes"], report["plain"]["resident_peak_bytes"])
        self.assertGreater(report["steps"], 8)

    def test_in_text(self):
        out = self.succeed(*self.COMMAND, "--multiples", "1.3")
        self.assertRegex(out, r"^gptsmall, .*: the lowest limit is [\d.]+ \w+ for all tensors, [\d.]+ \w+ over the level before a step")
        self.assertRegex(out, r"\n[\d.]+ \w+ +[\d.]+ \w+ +1\.30 ")

    def test_bad_input(self):
        for multiples in ("0.9", "many", "-1", ""):
            self.refuse(*self.COMMAND, "--multiples", multiples, says="--multiples")
        self.refuse(*self.COMMAND[:-2], "--tolerance", 0, says="--tolerance")
        self.refuse(*self.COMMAND, "--max-overhead", 0, says="--max-overhead")
        self.refuse(*self.COMMAND, "--json", "/no/such/folder/x", says="--json")


class VerifyAndBenchTest(CliTest):
    def test_verify(self):
        report = json.loads(self.succeed("verify", *SMALL_GPT, "--json", "-"))
        self.assertEqual((report["kind"], report["version"]), ("verify", 1))
        results = report["results"]
        self.assertEqual([r["strategy"] for r in results], ["none", "per_block", "selective"])
        for result in results:
            self.assertTrue(result["bit_equal"])
            self.assertEqual(result["largest_difference"], 0)
            self.assertGreater(result["tensors"], 10)
        self.assertEqual(results[0]["replayed_ops"], 0)
        self.assertGreater(results[1]["replayed_ops"], 0)

    def test_bench_json(self):
        path, page = self.dir / "bench.json", self.dir / "bench.html"
        out = self.succeed("bench", *SMALL_GPT, "--strategies", "checkpoint", "--iters", 3, "--json", path, "--html", page)
        self.assertIn("after forward", out)
        report = json.loads(path.read_text())
        self.assertEqual((report["kind"], report["version"], report["model"]), ("bench", 1, "gptsmall"))
        self.assertEqual(report["config"]["seq"], 32)
        self.assertIn("libtorch", report["machine"])
        plain, other = report["strategies"]
        self.assertEqual(page.read_text(), self.succeed("report", path, "--html", "-"))
        self.assertIn(f'<data value="{other["peak_bytes"]}"', page.read_text())
        self.assertEqual(plain["name"], "none")
        fields = {"name", "after_forward_bytes", "peak_bytes", "resident_peak_bytes", "step_ms_median", "step_ms_min", "step_ms_spread", "added_ms_median",
                  "replayed_ops", "replayed_kernel_ms", "bit_equal"}
        for strategy in (plain, other):
            self.assertEqual(set(strategy), fields)
            self.assertTrue(strategy["bit_equal"])
        self.assertEqual((plain["added_ms_median"], plain["replayed_ops"]), (0, 0))
        self.assertLess(other["after_forward_bytes"], plain["after_forward_bytes"])
        self.assertGreater(other["replayed_kernel_ms"], 0)

    def test_resident_bytes_of_a_step_hold_its_gradients(self):
        """In mlp nearly all of a step's peak. A step whose gradients were there before would hide them."""
        mlp = ["mlp", "--depth", 10, "--iters", 1, "--threads", 1]
        path = self.dir / "resident.json"
        self.succeed("bench", *mlp, "--strategies", "per_layer", "--json", path)
        rows = json.loads(path.read_text())["strategies"]
        self.succeed("bench", *mlp, "--limits", "150%", "--json", path)
        limits = json.loads(path.read_text())
        for row in (*rows, limits["plain"], *limits["rows"]):
            self.assertGreater(row["resident_peak_bytes"], 0.9 * row["peak_bytes"], row)

    def test_depths(self):
        mlp = ["mlp", "--width", 32, "--batch", 8, "--iters", 2, "--warmup", 0, "--threads", 1]
        path = self.dir / "depths.json"
        out = self.succeed("bench", *mlp, "--depths", "4,16", "--json", path)
        self.assertIn("activations", out)
        report = json.loads(path.read_text())
        self.assertEqual((report["kind"], report["version"], report["model"]), ("depths", 1, "mlp"))
        self.assertNotIn("depth", report["config"])
        activation = 4 * 8 * 32
        for row, depth, kept in zip(report["rows"], (4, 16), (3, 7)):
            self.assertEqual(row["depth"], depth)
            plain, segments, per_layer = row["strategies"]
            self.assertEqual([s["name"] for s in row["strategies"]], ["none", "segments", "per_layer"])
            self.assertTrue(all(s["bit_equal"] for s in row["strategies"]))
            self.assertEqual(plain["after_forward_bytes"], per_layer["after_forward_bytes"])
            self.assertEqual(plain["after_forward_bytes"] - segments["after_forward_bytes"], (depth - kept) * activation)

    def test_segments(self):
        mlp = ["mlp", "--depth", 16, "--batch", 512, "--iters", 1, "--warmup", 0, "--threads", 1]
        report = json.loads(self.succeed("segments", *mlp, "--segments", "4,8", "--json", "-"))
        self.assertEqual((report["kind"], report["version"]), ("segments", 1))
        self.assertEqual((report["layers"], report["sqrt_segments"]), (16, 4))
        activation = 4 * 512 * 1024
        self.assertEqual((report["layer_bytes"], report["boundary_bytes"]), (activation, activation))
        plain, per_layer = report["plain"], report["per_layer"]
        self.assertEqual([r["segments"] for r in report["rows"]], [1, 4, 8, 16])
        for row, kept in zip(report["rows"], (16, 7, 9, 16)):
            self.assertEqual(plain["after_forward_bytes"] - row["after_forward_bytes"], (16 - kept) * activation)
            self.assertEqual(row["peak_bytes"], row["predicted_peak_bytes"])
        self.assertEqual(per_layer["after_forward_bytes"], plain["after_forward_bytes"])
        self.assertGreaterEqual(per_layer["peak_bytes"], plain["peak_bytes"])

    def test_segments_of_blocks(self):
        out = self.succeed("segments", "gptsmall", "--depth", 4, "--seq", 32, "--width", 32, "--iters", 1)
        self.assertRegex(out, r"\n2 .*sqrt\(n\)")
        self.assertRegex(out, r"\nper layer ")

    def test_explain(self):
        out = self.succeed("explain", *SMALL_GPT, "--strategy", "selective")
        self.assertRegex(out, r"kept by policy +aten::\w+ .* yes\n")
        self.assertRegex(out, r"recomputed: \d+ operators? .* no\n")
        self.assertRegex(out, r"\n[^\n]+ kept for backward alone, .* to recompute\. Regions: 2\.")
        every = self.succeed("explain", *SMALL_GPT, "--all")
        self.assertGreater(len(every.splitlines()), len(out.splitlines()))

    def test_explain_a_plan(self):
        ops = [{"name": "aten::sin", "ns": 2000000, "scope": "first", "inputs": [0], "outputs": [1]},
               {"name": "aten::exp", "ns": 3000000, "scope": "second", "inputs": [1], "outputs": [2], "workspace": 512},
               {"name": "aten::exp_backward", "ns": 1000000, "inputs": [1, 2], "outputs": [3], "backward": True}]
        values = [{"bytes": 2048, "death": 3}, {"bytes": 4096, "death": 3, "evictable": True}, {"bytes": 1024, "death": 3}, {"bytes": 1024, "death": 3}]
        step = {"kind": "graph", "version": 1, "model": "tiny", "ops": ops, "values": values}
        plain = self.succeed("explain", self.file("step.json", json.dumps(step)))
        self.assertIn("tiny: peak 8.0 KiB while operator 2 'aten::exp_backward' runs; baseline 8.0 KiB", plain)
        self.assertIn("nothing is dropped", plain)

        plan = {"kind": "plan", "version": 1, "graph": step,
                "schedule": {"kind": "schedule", "version": 1, "graph": "0", "places": [[2, "drop", 1, "recompute", 0]]}}
        other_step = self.refuse("explain", self.file("plan.json", json.dumps(plan)), says='`graph`: found "0"; expected')
        plan["schedule"]["graph"] = re.search(r'expected "([0-9a-f]{16})"', other_step)[1]
        file = self.file("plan.json", json.dumps(plan))
        text = self.succeed("explain", file, "--dot", self.dir / "p.dot", "--trace", self.dir / "p.trace")
        self.assertIn("adds 2.000 ms to 6.000 ms (33.3 %): 1 operators recomputed", text)
        self.assertRegex(text, r"\n  first +0 B +1 +1 +2\.000 ms +2 +1 aten::sin\n")
        self.assertIn('label="aten::sin, 2 times"', (self.dir / "p.dot").read_text())
        runs = [e["name"] for e in json.loads((self.dir / "p.trace").read_text())["traceEvents"] if e["ph"] == "X"]
        self.assertEqual(runs, ["aten::sin", "aten::exp", "aten::sin", "aten::exp_backward"])
        report = json.loads(self.succeed("explain", file, "--json", "-"))
        self.assertEqual((report["kind"], report["version"]), ("explain_plan", 1))
        self.assertEqual((report["peak_bytes"], report["plain_peak_bytes"], report["added_ns"]), (8192, 8192, 2000000))
        self.assertEqual([h["bytes"] for h in report["holders"]], [4096, 2048, 1024])

        plan["schedule"]["places"] = [[1, "drop", 1]]
        self.refuse("explain", self.file("plan.json", json.dumps(plan)), says=("cannot run", "it reads value 1, which has been dropped"))

    def test_plan_keeps_a_budget_and_explain_reads_it(self):
        sin = [{"name": "aten::sin", "ns": 1000000, "inputs": [i], "outputs": [i + 1]} for i in range(4)]
        back = [{"name": "back", "ns": 1000000, "inputs": [3 - i] + ([4 + i] if i else []), "outputs": [5 + i], "backward": True} for i in range(4)]
        values = [{"bytes": 4096, "death": 8}] + [{"bytes": 4096, "death": 8 - i, "evictable": True} for i in range(1, 4)]
        values += [{"bytes": 64, "death": 4}] + [{"bytes": 64, "death": min(6 + i, 8)} for i in range(4)]
        step = self.file("step.json", json.dumps({"kind": "graph", "version": 1, "model": "tiny", "ops": sin + back, "values": values}))
        file = self.dir / "plan.json"
        report = json.loads(self.succeed("plan", step, "--budget", "13000", "--bound", "-o", file, "--json", "-"))
        self.assertEqual((report["kind"], report["version"]), ("plan_summary", 1))
        self.assertEqual((report["is_feasible"], report["added_ns"], report["bound_ns"], report["proof"]), (True, 1000000, 1000000, "exact"))
        self.assertLessEqual(report["peak_bytes"], 13000)
        self.assertIn("1 operators recomputed", self.succeed("explain", file))
        again = json.loads(self.succeed("plan", step, "--budget", "13000", "--starts", file, "--json", "-"))
        self.assertLessEqual(again["added_ns"], 1000000)
        self.refuse("plan", step, "--budget", "much", says=("--budget 'much'", "400MiB", "0.5"))
        self.refuse("plan", step, "--budget", "0.5", "--solver", "greedi", says=("unknown solver 'greedi'", "did you mean greedy"))
        self.assertEqual(refrain("plan", step, "--budget", "1KiB").returncode, 3)

    def test_pareto_draws_solvers_beside_each_other(self):
        chain = [{"name": "aten::sin", "ns": 1000000, "inputs": [i], "outputs": [i + 1]} for i in range(6)]
        back = [{"name": "aten::sin_backward", "ns": 1000000, "inputs": [5 - i] + ([6 + i] if i else []), "outputs": [7 + i], "backward": True}
                for i in range(6)]
        values = [{"bytes": 1 << 20, "death": 12}]
        values += [{"bytes": 1 << 20, "death": 12 - i, "evictable": True} for i in range(1, 6)] + [{"bytes": 64, "death": 6}]
        values += [{"bytes": 1 << 20, "death": min(8 + i, 12)} for i in range(6)]
        step = self.file("step.json", json.dumps({"kind": "graph", "version": 1, "model": "chain", "ops": chain + back, "values": values}))
        page = self.dir / "page.html"
        out = self.succeed("pareto", step, "--points", 3, "--bound", "--beside", "per_block,xla", "--html", page, "--json", self.dir / "p.json")
        self.assertRegex(out, r"chain: baseline peak [\d.]+ MiB")
        document = json.loads((self.dir / "p.json").read_text())
        names = [series["name"] for series in document["series"]]
        self.assertEqual(names[0], "refrain")
        self.assertIn("xla", names)
        for series in document["series"]:
            self.assertTrue(all(point["peak_bytes"] <= document["plain"]["peak_bytes"] for point in series["points"]))
        self.assertIn("Added time by peak", page.read_text())
        self.succeed("report", self.dir / "p.json", "--html", page)
        self.refuse("pareto", step, "--beside", "per_blok", says="per_block")

    def test_explain_json(self):
        def explain(strategy):
            return json.loads(self.succeed("explain", *SMALL_GPT, "--strategy", strategy, "--json", "-"))

        plain, replayed, selective = map(explain, ("none", "per_block", "selective"))
        fields = {"kind", "version", "model", "config", "machine", "strategy", "kept_bytes", "referenced_elsewhere_bytes", "recomputed_bytes",
                  "regions", "hints", "tensors"}
        row = {"op", "sizes", "dtype", "bytes", "region", "kept", "referenced_elsewhere", "shared", "why"}
        for report in (plain, replayed, selective):
            self.assertEqual(set(report), fields)
            self.assertEqual((report["kind"], report["version"]), ("explain", 1))
            for tensor in report["tensors"]:
                self.assertEqual(set(tensor), row)
            for total, holds in (("kept_bytes", lambda t: t["kept"] and not t["referenced_elsewhere"]),
                                 ("referenced_elsewhere_bytes", lambda t: t["referenced_elsewhere"]),
                                 ("recomputed_bytes", lambda t: not t["kept"] and not t["referenced_elsewhere"])):
                self.assertEqual(report[total], sum(t["bytes"] for t in report["tensors"] if holds(t) and not t["shared"]))
        self.assertEqual((plain["regions"], plain["recomputed_bytes"]), (0, 0))
        self.assertEqual((replayed["regions"], replayed["hints"]), (2, []))
        self.assertLess(replayed["kept_bytes"], selective["kept_bytes"])
        self.assertLess(selective["kept_bytes"], plain["kept_bytes"])

    def test_env(self):
        report = json.loads(self.succeed("env", "--json", "-"))
        self.assertEqual((report["kind"], report["version"], report["self_test"]), ("env", 1, "ok"))
        self.assertNotRegex(self.succeed("env"), r"(?m)^(kind|version)\b")
        self.assertGreater(report["cores"], 0)
        self.assertIn("gpt", report["models"])


class BudgetTest(CliTest):
    """profile, plan, explain, pareto of a real step; strategies budget:..."""

    MODEL = ["gptsmall", "--depth", "2", "--batch", "8", "--seq", "32", "--threads", "1"]

    def test_profile_plan_explain_pareto(self):
        step, plan = self.dir / "step.json", self.dir / "plan.json"
        text = self.succeed("profile", *self.MODEL, "-o", step)
        self.assertRegex(text, r"\Agptsmall, 256 tokens a step: \d+ operators, [\d.]+ ms, of that \d+ % in backward\n")
        self.assertIn("values are evictable", text)
        self.assertIn("peak", text)
        profile = json.loads(self.succeed("profile", *self.MODEL, "--iters", 1, "-o", step, "--json", "-"))
        self.assertEqual((profile["kind"], profile["version"], profile["model"]), ("profile", 1, "gptsmall"))
        self.assertGreater(profile["evictable_bytes"], 0)
        self.assertLess(profile["evictable_values"], profile["values"])
        self.assertEqual(len(profile["holders"]), 8)
        graph = json.loads(step.read_text())
        self.assertEqual((graph["kind"], len(graph["ops"])), ("graph", profile["operators"]))

        planned = json.loads(self.succeed("plan", step, "--budget", 0.5, "-o", plan, "--json", "-"))
        self.assertEqual((planned["is_feasible"], planned["plain_peak_bytes"]), (True, profile["peak_bytes"]))
        self.assertLess(planned["peak_bytes"], profile["peak_bytes"])
        explained = json.loads(self.succeed("explain", plan, "--json", "-"))
        self.assertEqual(explained["peak_bytes"], planned["peak_bytes"])
        self.assertEqual(explained["recomputed_ops"], planned["recomputed_ops"])
        self.assertGreater(explained["dropped_values"], 0)
        points = json.loads(self.succeed("pareto", step, "--points", 3, "--json", "-"))["points"]
        self.assertEqual(points[-1]["peak_bytes"], profile["peak_bytes"])
        self.assertEqual(sorted(p["peak_bytes"] for p in points), [p["peak_bytes"] for p in points])

    def test_explain_names_the_blocks_of_a_model(self):
        step, plan = self.dir / "step.json", self.dir / "plan.json"
        self.succeed("profile", *self.MODEL, "--iters", 1, "-o", step)
        ops = json.loads(step.read_text())["ops"]
        for backward in (False, True):
            scopes = {op.get("scope") for op in ops if op.get("backward", False) == backward}
            self.assertLessEqual({"tokens", "blocks.0.attention", "blocks.0.mlp", "blocks.1.mlp", "head"}, scopes)
        self.succeed("plan", step, "--budget", 0.2, "-o", plan)
        explained = json.loads(self.succeed("explain", plan, "--json", "-"))
        again = {scope["scope"] for scope in explained["scopes"] if scope["runs"] > 0}
        self.assertTrue(any(scope.startswith("blocks.1.") for scope in again), again)
        self.assertRegex(self.succeed("explain", plan), r"blocks\.\d\.(mlp|attention) ")

    def test_profile_of_two_batches_plans_for_others(self):
        model = ["gptsmall", "--depth", 2, "--seq", 32, "--threads", 1]  # convolutions have workspace that is not affine
        step, plan = self.dir / "step.json", self.dir / "plan.json"
        text = self.succeed("profile", *model, "--batches", "2,3", "-o", step)
        self.assertIn("gptsmall: batches 2 and 3 traced, scaling checked at 4", text)
        self.assertIn("bytes at each point of the step: exact; of each value: exact", text)
        self.assertIn(f"refrain plan {step} --batch 6 --budget 0.5", text)
        report = json.loads(self.succeed("profile", *model, "--iters", 1, "--batches", "2,3,7", "-o", step, "--json", "-"))
        self.assertEqual([row["batch"] for row in report["batches"]], [2, 3, 7])
        check = report["check"]
        self.assertEqual((check["batch"], check["worst_peak"], check["worst_value"]), (7, 0.0, 0.0))
        self.assertEqual(check["scaled_peak_bytes"], check["peak_bytes"])
        self.assertEqual(check["peak_bytes"], report["batches"][2]["peak_bytes"])
        self.assertGreater(check["scaled_operators_ms"], 0)

        self.succeed("plan", step, "--batch", 5, "--budget", 0.3, "-o", plan)
        planned = json.loads(plan.read_text())
        self.assertEqual(planned["graph"]["model"], "gptsmall, batch 5 as scaled from 2 and 3")
        self.succeed("explain", plan)
        direct = self.dir / "direct.json"
        self.succeed("profile", *model, "--batch", 3, "--iters", 1, "-o", direct)
        as_traced = json.loads(self.succeed("plan", step, "--batch", 3, "--budget", 1.0, "--json", "-"))
        alone = json.loads(self.succeed("plan", direct, "--budget", 1.0, "--json", "-"))
        self.assertEqual(as_traced["plain_peak_bytes"], alone["plain_peak_bytes"])
        points = json.loads(self.succeed("pareto", step, "--batch", 9, "--points", 3, "--json", "-"))["points"]
        self.assertGreater(points[-1]["peak_bytes"], as_traced["plain_peak_bytes"])

        self.refuse("plan", step, "--budget", 0.5, says=("has a step with 2 and one with 3 examples", "expected --batch"))
        self.refuse("plan", direct, "--batch", 5, "--budget", 0.5, says=("--batch 5", "has one step", "profile --batches"))
        self.refuse("plan", step, "--batch", 2**30, "--budget", 0.5, "--bound", "--batch", 0, says="--batch")
        document = json.loads(step.read_text())
        for broken, says in (({"kind": "batches", "version": 1}, "`traces`: expected a list of two"),
                             ({**document, "traces": document["traces"][:1]}, "`traces`: expected a list of two"),
                             ({**document, "traces": [{"batch": 0, "graph": {}}] * 2}, "`traces[0].batch`"),
                             ({**document, "traces": [1, 2]}, "`traces[0]`"),
                             ({**document, "traces": [{"batch": 2, "graph": {}}] * 2}, "`traces[0].graph`")):
            self.refuse("plan", self.file("broken.json", json.dumps(broken)), "--batch", 5, "--budget", 0.5, says=says)
        target = self.dir / "x"
        for batches in ("4", "4,4", "2,3,3", "1,2,3,4"):
            self.refuse("profile", *model, "--batches", batches, "-o", target, says=(f"--batches {batches}", "two or three different sizes"))
        self.refuse("profile", *model, "--batches", "2,0", "-o", target, says="--batches")
        self.refuse("profile", *model, "--batch", 4, "--batches", "2,3", "-o", target, says="--batch and --batches")
        self.refuse("profile", *model, "--batches", "2,1000000000", "-o", target, says="batch 1000000000 for model gptsmall")
        self.refuse("profile", "treelstm", "--seq", 4, "--batches", "2,3", "-o", target, says="two different steps")

    def test_bench_has_the_planned_peak(self):
        strategies = "budget:1.0,budget:0.5,budget:0.0"
        text = self.succeed("bench", *self.MODEL, "--iters", 1, "--warmup", 0, "--strategies", strategies)
        self.assertIn("planned peak", text)
        report = json.loads(self.succeed("bench", *self.MODEL, "--iters", 2, "--strategies", strategies, "--json", "-"))
        plain, *budgets = report["strategies"]
        self.assertEqual([b["name"] for b in budgets], strategies.split(","))
        self.assertNotIn("plan", plain)
        for budget in budgets:
            self.assertTrue(budget["bit_equal"])
            self.assertEqual(budget["peak_bytes"], budget["plan"]["peak_bytes"])
            self.assertEqual(budget["plan"]["following_ms"], budgets[0]["plan"]["following_ms"])
            self.assertGreaterEqual(budget["plan"]["following_ms"], 0)
            self.assertLessEqual(budget["plan"]["lower_bound_ms"], budget["plan"]["added_ms"])
        self.assertEqual(budgets[0]["plan"]["added_ms"], 0)
        self.assertGreater(budgets[2]["plan"]["added_ms"], budgets[1]["plan"]["added_ms"])
        peaks = [b["peak_bytes"] for b in budgets]
        self.assertEqual(peaks, sorted(peaks, reverse=True))
        self.assertLess(peaks[1], plain["peak_bytes"])
        limit = (peaks[1] + peaks[2]) // 2
        _, by_bytes = json.loads(self.succeed("bench", *self.MODEL, "--iters", 1, "--strategies", f"budget:{limit}", "--json", "-"))["strategies"]
        self.assertIn("following_ms", by_bytes["plan"])  # measured although 1.0 was not asked for
        self.assertLessEqual(by_bytes["peak_bytes"], limit)

    def test_verify(self):
        report = json.loads(self.succeed("verify", *self.MODEL, "--strategy", "budget:0.2", "--json", "-"))
        (result,) = report["results"]
        self.assertEqual((result["strategy"], result["bit_equal"], result["differences"]), ("budget:0.2", True, []))

    def test_train(self):
        reports = {}
        for strategy in ("none", "budget:0.3"):
            reports[strategy] = json.loads(self.succeed("train", *self.MODEL, "--steps", 4, "--strategy", strategy, "--json", "-"))
        plain, budget = reports["none"], reports["budget:0.3"]
        self.assertEqual(budget["loss_bits"], plain["loss_bits"])
        self.assertEqual((budget["budget"]["traced_steps"], budget["budget"]["planned_steps"], budget["budget"]["mismatched_steps"]), (1, 3, 0))
        self.assertLess(budget["peak_bytes"] - plain["peak_bytes"], 64 * 1024)  # that of the traced step, which is plain
        self.assertNotIn("budget", plain)
        limit = plain["peak_bytes"] * 8 // 10
        within = json.loads(self.succeed("train", *self.MODEL, "--steps", 4, "--strategy", f"budget:{limit}", "--json", "-"))
        self.assertLessEqual(within["peak_bytes"], limit)
        self.assertEqual(within["loss_bits"], plain["loss_bits"])

    def test_out_of_memory_says_which_number_to_raise(self):
        train = ["train", *self.MODEL, "--steps", 2, "--strategy"]
        for more in ([], ["--memory-limit", "1GiB"]):
            said = self.refuse(*train, "budget:700KiB", *more, code=3, says="raise the bytes of the budget, or lower --batch")
            self.assertNotIn("--memory-limit", said)
        for strategy in ("budget:0.5", "budget:1GiB", "auto", "per_block"):
            self.refuse(*train, strategy, "--memory-limit", "2MiB", code=3, says="; raise --memory-limit, or lower --batch\n")

    def test_bad_input(self):
        self.refuse("profile", *self.MODEL, says="--output is required")
        self.refuse("profile", *self.MODEL, "-o", self.dir, says="--output")
        self.refuse("profile", "gpd", "-o", self.dir / "x", says="model 'gpd'")
        self.refuse("profile", *self.MODEL, "--iters", 0, "-o", self.dir / "x", says="--iters")
        for budget in ("budget:", "budget:1.5", "budget:-1", "budget:much", "budget:0.5x"):
            for command in (["bench", "--strategies"], ["verify", "--strategy"], ["train", "--steps", "1", "--strategy"]):
                self.refuse(command[0], *self.MODEL, *command[1:], budget, says=(f"strategy '{budget}'", "from 0 to 1"))
        self.refuse("bench", *self.MODEL, "--strategies", "budget:1KiB", says=("strategy 'budget:1KiB'", "does not fit", "raise the budget"))
        self.refuse("advise", *self.MODEL, "--memory-limit", "9MiB", "--strategies", "budget:0.5", says="strategy 'budget:0.5'")


class MemoryTest(CliTest):
    PARTS = ["parameters", "gradients", "optimizer_states", "activations"]

    def test_breakdown_is_the_notebooks(self):
        path = self.dir / "breakdown.json"
        out = self.succeed("breakdown", "mlp", "--optimizer", "adam", "--batches", "32,64,128,256,512", "--json", path)
        for figure in ("40.04", "80.08", "160.16", "1.25", "2.50", "5.00", "10.00", "20.00", "0.8 %", "11.1 %"):
            self.assertIn(figure, out)
        report = json.loads(path.read_text())
        self.assertEqual((report["kind"], report["version"], report["optimizer"]), ("breakdown", 1, "adam"))
        self.assertEqual((report["parameter_count"], report["crossover_batch"]), (10_496_000, 4101))
        self.assertEqual([row["batch"] for row in report["rows"]], [32, 64, 128, 256, 512])
        for row in report["rows"]:
            self.assertEqual(list(row["estimated"]), self.PARTS)
            self.assertEqual(list(row["measured"]), self.PARTS + ["temporaries"])
            self.assertEqual(row["estimated"]["activations"], row["batch"] * 1024 * 10 * 4)
            for part in self.PARTS[:3]:
                self.assertEqual(row["estimated"][part], row["measured"][part])

    def test_breakdown_batches(self):
        out = json.loads(self.succeed("breakdown", *SMALL_GPT, "--batch", 1, "--optimizer", "sgd", "--json", "-"))
        self.assertEqual([row["batch"] for row in out["rows"]], [1, 2, 4])
        row = out["rows"][0]["measured"]
        self.assertEqual(row["optimizer_states"], row["parameters"])
        self.assertNotIn("batch", out["config"])
        self.refuse("breakdown", "gpt", "--batch", 3, "--batches", "1,2", says=("--batch 3", "--batches"))
        self.refuse("breakdown", "gpt", "--batches", "1,0", says="--batches")
        self.refuse("breakdown", "gpt", "--batches", "many", says=("--batches", "many"))
        self.refuse("breakdown", "gpt", "--optimizer", "lion", says=("--optimizer", "lion"))
        self.refuse("breakdown", "gpt", "--strategy", "per_blok", says="strategy 'per_blok'")

    def test_timeline(self):
        trace, page = self.dir / "trace.json", self.dir / "page.html"
        out = self.succeed("timeline", *SMALL_GPT, "--strategy", "per_block", "--iters", 1, "--trace", trace, "--html", page)
        self.assertRegex(out, r"peak .* \(\d+ bytes\) at .* ms, in \w+")
        self.assertIn("the largest of", out)
        self.assertIn("recording added", out)
        phases = [e["name"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
        self.assertEqual(phases[0], "forward")
        self.assertEqual(phases[-1], "optimizer")
        self.assertIn("recompute", phases)
        self.assertIn("<html", page.read_text())

    def test_timeline_json(self):
        report = json.loads(self.succeed("timeline", *SMALL_GPT, "--iters", 1, "--json", "-"))
        self.assertEqual((report["kind"], report["version"], report["strategy"]), ("timeline", 1, "none"))
        members = {"model", "config", "machine", "base_bytes", "peak_bytes", "phases", "points", "kinds", "peak",
                   "allocations", "measured_overhead"}
        self.assertLessEqual(members, set(report))
        self.assertEqual(sum(report["peak"]["by_kind"].values()), report["peak_bytes"])
        self.assertEqual(max(level for _, level in report["points"]), report["peak_bytes"])
        self.assertEqual([p["name"] for p in report["phases"]], ["forward", "backward", "optimizer"])
        self.assertNotIn("other", report["peak"]["by_kind"])
        self.assertEqual(set(report["peak"]["top"][0]), {"bytes", "kind", "op", "module", "phase", "sizes"})

    def test_timeline_bad_input(self):
        self.refuse("timeline", "gpd", says="model 'gpd'")
        self.refuse("timeline", *SMALL_GPT, "--strategy", "per_blok", says="strategy 'per_blok'")
        self.refuse("timeline", *SMALL_GPT, "--trace", "/no/such/folder/x", says="--trace")
        self.refuse("timeline", *SMALL_GPT, "--iters", 0, says="--iters")


if __name__ == "__main__":
    unittest.main()
