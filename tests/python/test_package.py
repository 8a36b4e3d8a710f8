"""The wheel: the package with its library, found by the torch that is imported."""

import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

import refrain
import torch

SOURCES = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(SOURCES / "python/packaging"))


class Package(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        import refrain_backend

        os.environ.update(REFRAIN_LIBRARY=str(refrain._library.path), REFRAIN_TORCH=torch.__version__)
        self.wheel = self.folder / refrain_backend.build_wheel(str(self.folder))
        del os.environ["REFRAIN_TORCH"]
        self.site = self.folder / "site"
        zipfile.ZipFile(self.wheel).extractall(self.site)

    def run_python(self, code):
        environment = {key: value for key, value in os.environ.items() if key != "REFRAIN_LIBRARY"}
        environment["PYTHONPATH"] = str(self.site)
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment, cwd=self.folder, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def test_it_is_found(self):
        code, output = self.run_python("import refrain; refrain.self_test(); print(refrain._library.path)")
        self.assertEqual((code, Path(output.strip())), (0, next((self.site / "refrain/lib").glob("torch*/librefrain.so"))))
        self.assertTrue((self.site / "refrain/py.typed").exists())

    def test_another_torch(self):
        code, output = self.run_python("import torch; torch.__version__ = '2.10.0'; import refrain")
        self.assertEqual(code, 1)
        self.assertRegex(output, r"no librefrain.so for torch 2.10.0; .* The package has it for torch 2\.\d+: install one of these")


if __name__ == "__main__":
    unittest.main()
