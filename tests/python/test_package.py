"""The wheel: the package with its libraries, of which the torch that is imported chooses one."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import refrain
import torch

SOURCES = Path(__file__).resolve().parent.parent.parent
MINOR = ".".join(torch.__version__.split(".")[:2])
sys.path.insert(0, str(SOURCES / "python/packaging"))
import refrain_backend  # noqa: E402


class Package(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        with mock.patch.dict(os.environ, REFRAIN_LIBRARY=str(refrain._library.path), REFRAIN_TORCH=torch.__version__):
            self.wheel = self.folder / refrain_backend.build_wheel(str(self.folder))
        self.site = self.folder / "site"
        zipfile.ZipFile(self.wheel).extractall(self.site)

    def run_python(self, *arguments, python=sys.executable, path=True):
        environment = {
            name: value for name, value in os.environ.items() if name not in ("REFRAIN_LIBRARY", "PYTHONPATH")
        }
        if path:
            environment["PYTHONPATH"] = str(self.site)
        done = subprocess.run(
            [python, "-W", "ignore", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.folder,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def library_of(self, minor):
        return self.site / f"refrain/lib/torch{minor}/librefrain.so"

    def test_it_is_found(self):
        code, output = self.run_python("-c", "import refrain; refrain.self_test(); print(refrain._library.path)")
        self.assertEqual((code, Path(output.strip())), (0, self.library_of(MINOR)))
        self.assertTrue((self.site / "refrain/py.typed").exists())
        packaged = {path.relative_to(self.site / "refrain") for path in (self.site / "refrain").rglob("*.py")}
        sources = SOURCES / "python/refrain"
        self.assertEqual(packaged, {path.relative_to(sources) for path in sources.rglob("*.py")})

    def test_another_torch(self):
        code, output = self.run_python("-c", "import torch; torch.__version__ = '2.10.0'; import refrain")
        self.assertEqual(code, 1)
        found = rf"no librefrain.so for torch 2.10.0; .* The package has it for torch {MINOR}: install one of these"
        self.assertRegex(output, found)

    def test_the_torch_that_is_imported_chooses(self):
        """Of two libraries; one that is another torch's is refused, though it lies where this one's should."""
        self.library_of("2.99").parent.mkdir()
        shutil.copy(self.library_of(MINOR), self.library_of("2.99"))
        code, output = self.run_python("-c", "import refrain; print(refrain._library.path)")
        self.assertEqual((code, Path(output.strip())), (0, self.library_of(MINOR)))
        code, output = self.run_python("-c", "import torch; torch.__version__ = '2.99.1+cpu'; import refrain")
        self.assertEqual(code, 1)
        expected = (
            f"ImportError: refrain: {self.library_of('2.99')} was built for torch {torch.__version__.split('+')[0]}"
        )
        self.assertIn(f"{expected}, found torch 2.99.1+cpu", output)

    def test_several_builds(self):
        """Each build folder's library lies in the folder of the torch that it was configured with."""
        for name, version in (("one", (2, 11)), ("other", (2, 12))):
            build, headers = self.folder / name, self.folder / f"{name}-torch/include/torch/headeronly"
            headers.mkdir(parents=True)
            (build / "lib").mkdir(parents=True)
            (headers / "version.h").write_text(
                "#define TORCH_VERSION_MAJOR %d\n#define TORCH_VERSION_MINOR %d\n" % version
            )
            (build / "CMakeCache.txt").write_text(f"REFRAIN_LIBTORCH:INTERNAL={self.folder / name}-torch\n")
            (build / "lib/librefrain.so").write_text(name)
        (self.folder / "one/lib/librefrain_report.so").write_text("drawing")
        builds = os.pathsep.join(str(self.folder / name) for name in ("one", "other"))
        with mock.patch.dict(os.environ, REFRAIN_BUILDS=builds):
            os.environ.pop("REFRAIN_LIBRARY", None)
            wheel = zipfile.ZipFile(self.folder / refrain_backend.build_wheel(str(self.folder)))
        found = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("refrain/lib/")}
        expected = {
            "torch2.11/librefrain.so": b"one",
            "torch2.12/librefrain.so": b"other",
            "librefrain_report.so": b"drawing",
        }
        self.assertEqual(found, {f"refrain/lib/{name}": data for name, data in expected.items()})
        builds = os.pathsep.join([str(self.folder / "one")] * 2)
        with (
            mock.patch.dict(os.environ, REFRAIN_BUILDS=builds),
            self.assertRaisesRegex(SystemExit, "one for each minor"),
        ):
            os.environ.pop("REFRAIN_LIBRARY", None)
            refrain_backend.build_wheel(str(self.folder))

    def test_a_fresh_environment(self):
        """Installed by pip, without torch, which is another environment's."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder / "fresh"], check=True, timeout=120)
        python = str(self.folder / "fresh/bin/python")
        pip = ["-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
        code, output = self.run_python(*pip, "--quiet", str(self.wheel), path=False)
        self.assertEqual(code, 0, output)
        code, output = self.run_python("-c", "import refrain", python=python, path=False)
        self.assertRegex(output, "No module named 'torch'")
        site = json.loads(
            self.run_python("-c", "import site; print(site.getsitepackages())", python=python)[1].replace("'", '"')
        )[0]
        others = {sysconfig.get_paths()["purelib"], str(Path(torch.__file__).parent.parent)}
        (Path(site) / "torch.pth").write_text("\n".join(sorted(others)) + "\n")
        code, output = self.run_python(
            "-c",
            "import refrain; refrain.self_test(); print(refrain._library.path)\n"
            "with refrain.MemoryTimeline() as timeline: pass\n"
            "assert '<svg' in timeline.report.html()",
            python=python,
            path=False,
        )
        self.assertEqual((code, output), (0, f"{site}/refrain/lib/torch{MINOR}/librefrain.so\n"))
        (self.folder / "program.py").write_text("import torch; print(torch.ones(3).sum().item())")
        code, output = self.run_python(
            "-m", "refrain", "run", "--quiet", "--memory-limit", "1GiB", "program.py", python=python, path=False
        )
        self.assertEqual((code, output), (0, "3.0\n"))


if __name__ == "__main__":
    unittest.main()
