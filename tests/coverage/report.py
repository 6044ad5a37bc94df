#!/usr/bin/env python3
"""What of include/ the tests reach: lines and branches, over all instantiations and all builds.

usage: report.py ROOT SUMMARY FOLDER...

Each FOLDER is a build with clang's coverage whose tests have run, with their raw profiles in FOLDER/profiles. A line
or a side of a branch counts as reached if any instantiation in any of the builds reaches it: what a kernel does for
one type or instruction set alone is seen there alone. Prints what is not reached; fails below the targets.
"""

import json
import pathlib
import subprocess
import sys
from collections import defaultdict

LINES, BRANCHES = 95.0, 85.0  # per cent of include/

# Not counted: nothing here can run it. {path below include/recycled: reason}
ELSEWHERE = {
    "simd/neon.hpp": "64-bit Arm: run under qemu by --neon, where no profile is taken",
}


def exported(folder):
    """Segments and branches of every file, as llvm-cov has them."""
    profile = folder / "all.profdata"
    raw = [str(path) for path in (folder / "profiles").glob("*.profraw")]
    subprocess.run(["llvm-profdata", "merge", "-sparse", "-o", profile, *raw], check=True)
    programs = [path for path in (folder / "tests").rglob("*_test") if path.is_file()]
    objects = [word for path in programs[1:] for word in ("-object", str(path))]
    command = ["llvm-cov", "export", "-skip-functions", "-skip-expansions", f"-instr-profile={profile}"]
    out = subprocess.run([*command, str(programs[0]), *objects], check=True, capture_output=True).stdout
    return json.loads(out)["data"][0]["files"]


def count_at(segments, place):
    """How often what stands at (line, column) was come to."""
    last = next((s for s in reversed(segments) if (s[0], s[1]) <= place), None)
    return last[2] if last and last[3] else 0


def line_counts(segments):
    """{line: count} of the lines that hold code, by the rules of LLVM's LineCoverageStats."""
    by_line = defaultdict(list)
    for line, column, count, has_count, is_entry, is_gap in segments:
        by_line[line].append((column, count, has_count, is_entry, is_gap))
    counts, wrapped = {}, None
    for line in range(min(by_line, default=0), max(by_line, default=-1) + 1):
        here = by_line.get(line, [])
        starts = [s for s in here if s[2] and s[3] and not s[4]]
        skipped = bool(here) and not here[0][2] and here[0][3]
        if not skipped and (starts or (wrapped and wrapped[2])):
            counts[line] = max([wrapped[1] if wrapped else 0] + [s[1] for s in starts])
        if here:
            wrapped = here[-1]
    return counts


class File:
    def __init__(self):
        self.lines = defaultdict(int)
        self.branches = defaultdict(lambda: [0, 0])
        self.reached = defaultdict(int)

    def add(self, entry):
        for line, count in line_counts(entry["segments"]).items():
            self.lines[line] += count
        for start, column, end, end_column, yes, no, *_ in entry["branches"]:
            sides = self.branches[start, column, end, end_column]
            sides[0] += yes
            sides[1] += no
            self.reached[start, column, end, end_column] += count_at(entry["segments"], (start, column))

    def sides(self):
        """Of branches that are decided at run time: a constant one goes neither way, though it is reached."""
        for place, (yes, no) in sorted(self.branches.items()):
            if yes or no or not self.reached[place]:
                yield from ((place, "true", yes), (place, "false", no))


def spans(numbers):
    """1, 2, 3, 7 -> 1-3, 7"""
    runs = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def share(reached, total):
    return 100.0 * reached / total if total else 100.0


def main():
    root, summary, *folders = [pathlib.Path(word) for word in sys.argv[1:]]
    include = (root / "include" / "recycled").resolve()
    files = defaultdict(File)
    for folder in folders:
        for entry in exported(folder):
            path = pathlib.Path(entry["filename"]).resolve()
            if include in path.parents and str(path.relative_to(include)) not in ELSEWHERE:
                files[str(path.relative_to(include))].add(entry)

    totals = [0, 0, 0, 0]
    for name, file in sorted(files.items()):
        missed = [line for line, count in file.lines.items() if not count]
        sides = list(file.sides())
        cold = [(place, side) for place, side, count in sides if not count]
        one = [len(file.lines) - len(missed), len(file.lines), len(sides) - len(cold), len(sides)]
        totals = [a + b for a, b in zip(totals, one)]
        if missed or cold:
            print(f"{name}: {share(*one[:2]):.1f} % of lines, {share(*one[2:]):.1f} % of branches")
        if missed:
            print(f"  lines never reached: {spans(missed)}")
        if cold:
            print("  branches never taken: " + ", ".join(f"{p[0]}:{p[1]} {side}" for p, side in cold))
    for name, reason in ELSEWHERE.items():
        print(f"{name}: not counted ({reason})")
    lines, branches = share(*totals[:2]), share(*totals[2:])
    figure = f"{lines:.1f} % of {totals[1]} lines, {branches:.1f} % of {totals[3]} sides of branches"
    print(f"include/: {figure}")
    with open(summary, "a", encoding="utf-8") as stream:
        stream.write(f"coverage of include/\t{figure}\n")
    sys.exit(0 if lines >= LINES and branches >= BRANCHES else 1)


if __name__ == "__main__":
    main()
