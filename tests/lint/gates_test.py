#!/usr/bin/env python3
"""Each gate of .ci/run stops the fault that it is for: planted in small trees made for it.

The flags, settings and scripts are those of this repository. Needs what scripts/setup --dev installs; about 15 seconds.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENV = {**{k: v for k, v in os.environ.items() if not k.startswith("GIT_") and k not in ("MAKEFLAGS", "MAKELEVEL")},
       "PATH": "/usr/bin:" + os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}

SHADOWED = "int f(int a) {\n  int b = a;\n  if (a > 1) {\n    int b = a + 1;\n    return b;\n  }\n  return b;\n}\n"
NARROWED = "unsigned char f(int a) {\n  unsigned char b = a;\n  return b;\n}\n"
CAST = "long f(double a) {\n  return (long)a;\n}\n"
NO_VIRTUAL_DESTRUCTOR = "struct A {\n  virtual int f() { return 1; }\n};\nint f(A& a) { return a.f(); }\n"
COPIES_A_STRING = "#include <string>\nbool f(std::string a) { return a.empty(); }\n"
CLEAN = "#include <string>\nbool f(const std::string& a) { return a.empty(); }\n"
OVERFLOWS = "char* volatile a;\nint main(int argc, char**) {\n  a = new char[8];\n  a[argc + 8] = 1;\n  delete[] a;\n}\n"
SHIFTS_TOO_FAR = "int main(int argc, char**) { return (1 << (argc + 31)) & 0; }\n"
LEAKS = "char* volatile a;\nint main() {\n  a = new char[64];\n  a = nullptr;\n}\n"
FINE = "int main() { return 0; }\n"


class Tree(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name).resolve()

    def copy(self, *paths):
        for path in paths:
            (self.dir / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.dir / path)

    def write(self, path, text, mode=0o644):
        (self.dir / path).parent.mkdir(parents=True, exist_ok=True)
        (self.dir / path).write_text(text)
        (self.dir / path).chmod(mode)

    def run_here(self, *command, **env):
        done = subprocess.run(command, cwd=self.dir, env={**ENV, **env}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=300)
        return done.returncode, done.stdout

    def commit(self):
        for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
            self.assertEqual(self.run_here("git", *command)[0], 0)

    def build(self, sources, **options):
        """With the flags of this repository; {program: source}. Only compiles what has no `main`."""
        self.copy("cmake/RefrainFlags.cmake")
        targets = ""
        for name, text in sources.items():
            self.write(f"src/{name}.cc", text)
            targets += f"add_{'executable' if 'main(' in text else 'library'}({name} src/{name}.cc)\ntarget_link_libraries({name} refrain_warnings)\n"
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.25)\nproject(planted CXX)\nset(CMAKE_CXX_STANDARD 20)\n"
                   f"include(cmake/RefrainFlags.cmake)\n{targets}")
        code, said = self.run_here("cmake", "-S", ".", "-B", "build", "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items()),
                                   "-DREFRAIN_CCACHE=")
        self.assertEqual(code, 0, said)
        return self.run_here("cmake", "--build", "build")


class Format(Tree):
    def check(self, text):
        self.copy("Makefile", ".clang-format")
        self.write("src/a.cc", text)
        self.commit()
        return self.run_here("make", "format-check")

    def test_a_badly_indented_line(self):
        code, said = self.check("int f() {\n      return 1;\n}\nint g();\n")
        self.assertNotEqual(code, 0)
        self.assertIn("src/a.cc:1:10: error: code should be clang-formatted", said)

    def test_a_tidy_file(self):
        self.assertEqual(self.check("int f() { return 1; }\n")[0], 0)


class Warnings(Tree):
    def test_each_stops_the_build(self):
        for flag, text in (("shadow", SHADOWED), ("conversion", NARROWED), ("old-style-cast", CAST), ("non-virtual-dtor", NO_VIRTUAL_DESTRUCTOR)):
            with self.subTest(flag=flag):
                code, said = self.build({"planted": text}, REFRAIN_WERROR="ON")
                self.assertNotEqual(code, 0)
                self.assertIn(f"[-Werror={flag}]", said)

    def test_is_a_warning_where_errors_are_off(self):
        code, said = self.build({"planted": SHADOWED}, REFRAIN_WERROR="OFF")
        self.assertEqual(code, 0, said)
        self.assertIn("[-Wshadow]", said)


class Skipped(Tree):
    def run_tests(self, tests):
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.25)\nproject(planted NONE)\nenable_testing()\n" + tests)
        self.run_here("cmake", "-S", ".", "-B", "build", "-G", "Ninja")
        (self.dir / "gtest").mkdir()
        code, said = self.run_here("ctest", "--test-dir", "build", "--output-junit", str(self.dir / "seen.xml"))
        self.assertEqual(code, 0, said)
        return self.run_here(sys.executable, str(ROOT / "scripts/ci-skipped"), "seen.xml", "gtest")

    def test_a_test_that_skips_itself(self):
        code, said = self.run_tests('add_test(NAME a COMMAND sh -c "echo no browser; exit 77")\nset_tests_properties(a PROPERTIES SKIP_RETURN_CODE 77)\n')
        self.assertEqual(code, 1)
        self.assertIn("skipped: a: notrun: SKIP_RETURN_CODE=77: no browser", said)

    def test_a_test_that_is_disabled(self):
        code, said = self.run_tests("add_test(NAME a COMMAND true)\nadd_test(NAME b COMMAND true)\nset_tests_properties(a PROPERTIES DISABLED ON)\n")
        self.assertEqual(code, 1)
        self.assertIn("skipped: a: disabled", said)

    def test_a_case_of_googletest(self):
        self.write("gtest/a_test.xml", '<testsuites><testsuite><testcase name="B" classname="A"><skipped message="a.cc:1&#x0A;no heap here"/></testcase>'
                   '<testcase name="C" classname="A"><skipped message="a.cc:2&#x0A;the function is called once"/></testcase></testsuite></testsuites>')
        self.write("seen.xml", '<testsuite><testcase name="a_test" status="run"/></testsuite>')
        code, said = self.run_here(sys.executable, str(ROOT / "scripts/ci-skipped"), "seen.xml", "gtest")
        self.assertEqual((code, said), (1, "skipped: a_test: A.B: no heap here\n"))

    def test_no_test_at_all(self):
        self.write("seen.xml", "<testsuite/>")
        self.assertEqual(self.run_here(sys.executable, str(ROOT / "scripts/ci-skipped"), "seen.xml")[0], 2)

    def test_all_ran(self):
        self.assertEqual(self.run_tests("add_test(NAME a COMMAND true)\n"), (0, ""))


class Tidy(Tree):
    def tidy(self, *options):
        return self.run_here(sys.executable, "scripts/ci-tidy", "--build", "build", *options)

    def test_looks_at_what_changed(self):
        self.copy("scripts/ci-tidy", ".clang-tidy", ".clang-format")
        self.build({"old": COPIES_A_STRING, "new": CLEAN})
        self.write(".gitignore", "/build/\n")
        self.commit()
        self.write("src/new.cc", CLEAN + "// more\n")
        self.commit()
        code, said = self.tidy()
        self.assertEqual(code, 0, said)
        self.assertIn("src/new.cc: clean", said)
        self.assertNotIn("src/old.cc", said)

        self.write("src/new.cc", COPIES_A_STRING)
        code, said = self.tidy()
        self.assertEqual(code, 1)
        self.assertIn("performance-unnecessary-value-param", said)

        self.write("src/new.h", "#pragma once\n")
        self.write("src/new.cc", CLEAN)
        code, said = self.tidy("--most", "0")
        self.assertIn("1 sources changed: looks at the 0 largest", said)

    def test_commands_of_gcc(self):
        self.copy("scripts/ci-tidy", ".clang-tidy", ".clang-format")
        self.write("src/a.cc", CLEAN)
        self.write("build/compile_commands.json", json.dumps([{
            "directory": str(self.dir), "file": str(self.dir / "src/a.cc"),
            "command": "c++ -std=c++20 -fpch-preprocess -fno-semantic-interposition -Winvalid-pch -include /nowhere/cmake_pch.hxx -c src/a.cc"}]))
        self.commit()
        code, said = self.tidy("--all")
        self.assertEqual(code, 0, said)


class Sanitizers(Tree):
    def test_each_fault_is_found(self):
        names = self.run_here(str(ROOT / "scripts/ci-asan"), "--targets")[1].split()
        self.assertIn("random_programs_test", names)
        for what, text, says in (("fine", FINE, None), ("overflow", OVERFLOWS, "heap-buffer-overflow"),
                                 ("shift", SHIFTS_TOO_FAR, "is too large for 32-bit type 'int'"), ("leak", LEAKS, "detected memory leaks")):
            with self.subTest(what):
                code, said = self.build({name: FINE for name in names} | {names[-1]: text}, REFRAIN_SANITIZE="address,undefined", CMAKE_BUILD_TYPE="Debug")
                self.assertEqual(code, 0, said)
                code, said = self.run_here(str(ROOT / "scripts/ci-asan"), "build")
                self.assertEqual(code != 0, says is not None, said)
                self.assertIn(says or "passed", said)


class Parts(Tree):
    """.ci/run itself, with other parts."""

    def run_ci(self, *parts, **fails):
        self.copy(".ci/run", "scripts/ci-skipped")
        self.write("scripts/setup", "#!/bin/sh\n", 0o755)
        for name in ("layers_test", "layers_broken_test", "gates_test"):
            self.write(f"tests/lint/{name}.py", "")
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.25)\nproject(planted NONE)\nenable_testing()\nadd_test(NAME a COMMAND true)\n"
                   + fails.pop("tests", ""))
        make = "cmake -S . -B $@ -G Ninja >/dev/null"
        self.write("Makefile", f"build-core: ; {make}\nbuild: ; {'false' if fails.get('build') else make}\ncore-build: build-core\n"
                   ".PHONY: build build-core\n" + "".join(f"{name}: ; {'false' if fails.get(name.replace('-', '_')) else 'true'}\n"
                                                          for name in ("format-check", "tidy-changed", "cost", "docs", "asan-subset")))
        return self.run_here("bash", ".ci/run", *parts)

    def test_all_pass(self):
        code, said = self.run_ci()
        self.assertEqual(code, 0, said)
        self.assertIn("\nparts: 11 passed, 0 failed\n", said)
        self.assertIn("100% tests passed, 0 tests failed out of 1", said)

    def test_others_run_after_one_that_fails(self):
        code, said = self.run_ci(format_check=True, cost=True)
        self.assertEqual(code, 1)
        self.assertRegex(said, r"\nformat +FAILED .*\nlayers +passed ")
        self.assertIn("\nparts: 9 passed, 2 failed\n", said)

    def test_what_needs_the_build_does_not_run_without(self):
        code, said = self.run_ci(build=True)
        self.assertEqual(code, 1)
        self.assertRegex(said, r"\nbuild +FAILED .*\ntests +not run: build did not pass .*\ntidy +passed .*\ncost +not run.*\ndocs +passed .*\nasan +passed ")

    def test_a_test_that_fails(self):
        code, said = self.run_ci(tests="add_test(NAME b COMMAND false)\n")
        self.assertEqual(code, 1)
        self.assertRegex(said, r"\ntests +FAILED ")

    def test_a_skipped_test(self):
        code, said = self.run_ci("tests", "build", tests='add_test(NAME b COMMAND sh -c "exit 77")\nset_tests_properties(b PROPERTIES SKIP_RETURN_CODE 77)\n')
        self.assertEqual(code, 1)
        self.assertIn("skipped: b: notrun", said)
        self.assertRegex(said, r"\nbuild +passed .*\ntests +FAILED .*\ntotal")

    def test_a_part_that_is_none(self):
        self.assertEqual(self.run_ci("test")[0], 2)


if __name__ == "__main__":
    unittest.main()
