#!/usr/bin/env python3
"""Flips an operator or a constant of the library, builds the tests that should notice, and counts those that do.

usage: mutate.py ROOT WORK [--count N] [--seed S] [--jobs N] [--only PATTERN] [--except PATTERN] [--summary FILE]
                 [--list]

A mutant is caught if a test of its file (TESTS), or one of LAST, fails, crashes or runs for ten times as long as it
should, or one of its file's does under AddressSanitizer (ThreadSanitizer, of executors), and is no mutant if it does
not compile. Of those whose "file:line:" fits the patterns a seed chooses the same mutants as long as their lines are the
same, whatever changes beside them. Survivors are listed, and below nine in ten caught the exit status is 1.
"""

import argparse
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from multiprocessing.pool import ThreadPool

from rules import EQUAL_FLIPS, FILES, LAST, SHARED, SKIPPED_LINES, TESTS

TARGET = 90.0  # per cent caught

# What is flipped: binary operators stand between spaces, as clang-format leaves them.
SWAPS = {
    " < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > ", " == ": " != ", " != ": " == ",
    " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " % ": " / ", " += ": " -= ", " -= ": " += ",
    " && ": " || ", " || ": " && ", " & ": " | ", " | ": " & ", " << ": " >> ", " >> ": " << ",
    "std::min(": "std::max(", "std::max(": "std::min(", "std::min_element": "std::max_element",
    "std::max_element": "std::min_element", "true": "false", "false": "true",
    "infinity()": "max()", "StepKind::full": "StepKind::recycled", "StepKind::recycled": "StepKind::full",
}  # fmt: skip
OPERATOR = re.compile("|".join(re.escape(word) for word in sorted(SWAPS, key=len, reverse=True)))
NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:[eE]-?\d+)?)([FU]?)(?![\w.'])")
COMPILER_REFUSED = re.compile(r"^\d+ errors? generated|undefined reference to `recycled::", re.MULTILINE)
QUIET = re.compile(r'"(?:[^"\\]|\\.)*"|//.*$')  # strings and comments


def flipped(number, suffix):
    """Another number: 0 and 1 change places, others grow by one, fractions by half; 0.0 becomes 1.0."""
    if "." in number or "e" in number.lower():
        return f"{float(number) * 1.5 or 1.0}{suffix}"
    return f"{ {0: 1, 1: 0}.get(int(number), int(number) + 1) }{suffix}"


def skipped(name, line):
    """Why a line is left as it is, or None."""
    return next((why for files, rule, why in SKIPPED_LINES if re.search(files, name) and re.search(rule, line)), None)


def equal(name, line, flip):
    """Whether it is known to change nothing."""
    return any(re.search(files, name) and re.search(rule, line) and re.fullmatch(flips, flip)
               for files, rule, flips, _ in EQUAL_FLIPS)  # fmt: skip


def in_turn(seed, name, line, mutant):
    """What mutants are sorted by: nothing else decides which ones a seed tries."""
    return hashlib.sha256(repr((seed, name, line.strip(), *mutant[1:])).encode()).digest()


def mutants_of(name, lines):
    """(line number, column, what stands there, what comes instead) for every place that can be flipped."""
    for number, line in enumerate(lines):
        if skipped(name, line):
            continue
        code = QUIET.sub(lambda match: " " * len(match.group()), line)
        found = [(match, SWAPS[match.group()]) for match in OPERATOR.finditer(code)]
        found += [(match, flipped(match.group(1), match.group(2))) for match in NUMBER.finditer(code)]
        for match, after in found:
            if not equal(name, line, f"{match.group().strip()} -> {after.strip()}"):
                yield number, match.start(), match.group(), after


class Builds:
    """Programs of tests, built without the precompiled header that holds the library. Each is optimised or not,
    whichever takes less time to build and run."""

    LEVELS = ["-O0", "-O1"]
    SANITIZERS = ["address", "thread"]

    def __init__(self, root, work):
        self.root, self.work = root, work
        self.flags = ["-std=c++20", "-march=native", "-pthread", "-w", "-D_GLIBCXX_ASSERTIONS", f"-I{root}/tests",
                      "-isystem", "/usr/include/eigen3", f'-DRECYCLED_TEST_DATA="{root}/tests/data"']  # fmt: skip
        self.best, self.timing = {}, threading.Lock()
        work.mkdir(parents=True, exist_ok=True)
        source = pathlib.Path(__file__).parent / "standard.hpp"
        for kind in ([level, *more] for level in self.LEVELS for more in ([], *map(self.sanitized, self.SANITIZERS))):
            subprocess.run(["clang++", *self.flags, *kind, "-xc++-header", source, "-o", self.header(kind)], check=True)

    def header(self, kind):
        return self.work / f"standard{''.join(kind)}.pch"

    @staticmethod
    def sanitized(sanitizer):
        # ThreadSanitizer sees no access of more than 16 bytes, such as those of AVX.
        narrow = ["-march=x86-64"] if sanitizer == "thread" and platform.machine() == "x86_64" else []
        return [f"-fsanitize={sanitizer}", *narrow] if sanitizer else []

    def build(self, test, include, program, kind):
        """Whether it compiles. Throws for what says nothing of the mutant: no memory, no library of a sanitizer."""
        source = self.root / "tests" / f"{test.partition(':')[0]}.cpp"
        command = ["clang++", *self.flags, *kind, f"-I{include}", "-include-pch", self.header(kind), source,
                   "-o", program, "-lgtest", "-lgtest_main"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 and not COMPILER_REFUSED.search(done.stderr):
            raise RuntimeError(f"{test} was not built: {done.stderr[-2000:]}")
        return done.returncode == 0

    def passes(self, test, program, limit):
        chosen = test.partition(":")[2] or "*"
        environment = {**os.environ, "GTEST_FAIL_FAST": "1", "GTEST_BRIEF": "1", "GTEST_FILTER": chosen}
        try:
            done = subprocess.run([program], capture_output=True, timeout=limit, env=environment, cwd=program.parent)
            return done.returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def sound(self, test):
        """The level for a test and the time that it runs, found by building it once with the library as it is."""
        with self.timing:
            if test not in self.best:
                self.best[test] = min((self.timed(test, level) for level in self.LEVELS), key=lambda timed: timed[0])
            return self.best[test][1:]

    def timed(self, test, level):
        program, begin = self.work / "sound", time.monotonic()
        if not self.build(test, self.root / "include", program, [level]):
            raise RuntimeError(f"{test} does not build")
        built = time.monotonic()
        if not self.passes(test, program, 600):
            raise RuntimeError(f"{test} does not pass")
        end = time.monotonic()
        return end - begin, level, end - built

    def verdict(self, name, mutant):
        """caught, by which test; survived; or no mutant"""
        number, column, before, after = mutant
        work = self.work / str(threading.get_ident())
        include = work / "include"
        shutil.rmtree(include, ignore_errors=True)
        shutil.copytree(self.root / "include", include)
        path = include / "recycled" / name
        lines = path.read_text().splitlines()
        lines[number] = lines[number][:column] + after + lines[number][column + len(before) :]
        path.write_text("\n".join(lines) + "\n")
        program = work / "mutant"
        own = next(tests for files, tests in TESTS if re.search(files, name))
        tried = [(test, "") for test in dict.fromkeys([*own, *LAST])]
        tried += [(test, "thread" if name.startswith("executor/") else "address") for test in own]
        if re.search(SHARED, name):
            tried.append(("pieces_test", "thread"))
        for test, with_it in tried:
            level, seconds = self.sound(test)
            limit = 20 + (40 if with_it else 10) * seconds
            if not self.build(test, include, program, [level, *self.sanitized(with_it)]):
                return "no mutant", "does not compile"
            if not self.passes(test, program, limit):
                return "caught", test + (f", {with_it} sanitizer" if with_it else "")
        return "survived", ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="")
    parser.add_argument("--except", dest="but", default="^$")
    parser.add_argument("--summary", default=os.devnull)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    root, work = options.root.resolve(), options.work.resolve()

    include = root / "include/recycled"
    names = sorted(str(path.relative_to(include)) for pattern in FILES for path in include.glob(pattern))
    text = {name: (include / name).read_text().splitlines() for name in names}
    places = [(name, mutant) for name in names for mutant in mutants_of(name, text[name])]
    lines = {place: f"{place[0]}:{place[1][0] + 1}:" for place in places}
    places = [place for place in places
              if re.search(options.only, lines[place]) and not re.search(options.but, lines[place])]  # fmt: skip
    chosen = sorted(places, key=lambda place: in_turn(options.seed, place[0], text[place[0]][place[1][0]], place[1]))
    if options.list:
        for name, (number, _, before, after) in places:
            print(f"{name}:{number + 1}: {before.strip()} -> {after.strip()}")
        return

    builds, counts, survivors = Builds(root, work), {"caught": 0, "survived": 0, "no mutant": 0}, []
    with ThreadPool(options.jobs) as pool:
        for (name, mutant), (verdict, by) in zip(chosen, pool.imap(lambda place: builds.verdict(*place), chosen)):
            number, _, before, after = mutant
            what = f"{name}:{number + 1}: {before.strip()} -> {after.strip()}"
            counts[verdict] += 1
            print(f"{verdict:9} {what} {by and '(' + by + ')'}", flush=True)
            if verdict == "survived":
                survivors.append(f"{what}    {text[name][number].strip()}")
            if counts["caught"] + counts["survived"] >= options.count:
                break

    tried = counts["caught"] + counts["survived"]
    figure = f"{counts['caught']} of {tried} caught, seed {options.seed}, {len(places)} places"
    print("\n".join(["", f"mutants: {figure}", *[f"  survived {line}" for line in survivors]]))
    with open(options.summary, "a", encoding="utf-8") as stream:
        stream.write(f"mutants\t{figure}\n")
    sys.exit(0 if tried > 0 and 100 * counts["caught"] >= TARGET * tried else 1)


if __name__ == "__main__":
    main()
