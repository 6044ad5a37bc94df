#!/usr/bin/python3
"""The frontier: what policies lose against what they read and how long a token takes. Prints means over texts.

usage: plot_quality.py PICTURE.png [--json ALL.json] RESULTS.json...

Results are those of `bench/run quality` for models, whose loss is the KL divergence, or of `replay`, one layer's, whose
loss is the error of its output.
"""
import json
import math
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, told apart by every kind of colour vision; the markers help in print.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
BASELINES = ("never", "snapkv", "sliding-window", "streaming-llm", "h2o", "keyformer")  # grey: they never refresh
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "*"]
COSTS = {"rows": "rows read", "bytes_share": "bytes read", "time": "time of a token's decoding"}


RECOMMENDED = "self-calibrating:0.15:sketch@1/8"


def family(policy):
    """Settings of one kind of policy are joined by a line: 'self-calibrating:0.3:sketch@1/8' is one with a sketch."""
    schedule, _, capacity = policy.partition("@")
    parts = schedule.split(":")
    if capacity.startswith("1/"):
        capacity = f", K = L/{capacity[2:]}"
    return parts[0] + (f", {parts[-1]}" if parts[-1] in ("sketch", "keys") else "") + capacity


def read(paths):
    """{title: {policy: [line of each text]}}"""
    panels = {}
    for path in paths:
        with open(path) as file:
            lines = json.load(file)
        full = dict(lines[0])
        for line in lines:
            if "model" in line:
                title = f"{line['model']}, behind {line['context']} tokens"
                line |= {"loss": line["kl_mean"], "time": line["ms"] / line["full_ms"]}
            else:
                title = "one layer of a trace"
                line |= {"loss": line["error"], "time": line["microseconds"] / full["microseconds"],
                         "rows": line["rows"] / full["rows"]}
            panels.setdefault(title, {}).setdefault(line["policy"], []).append(line)
    return panels


def mean(lines, key):
    """What is no number (null) makes the mean infinite."""
    return sum(math.inf if line[key] is None else line[key] for line in lines) / len(lines)


def table(title, policies):
    print(f"\n{title}: means over {len(policies['full'])} texts")
    print(f"{'policy':<36} {'PPL':>8} {'KL':>8} {'median':>8} {'95 %':>8} {'rows':>7} {'bytes':>7} {'time':>6}")
    for policy, lines in policies.items():
        perplexity = math.exp(sum(math.log(line["perplexity"] or math.inf) for line in lines) / len(lines))
        print(f"{policy:<36} {perplexity:8.3f} {mean(lines, 'kl_mean'):8.4f} {mean(lines, 'kl_median'):8.4f} "
              f"{mean(lines, 'kl_p95'):8.4f} {mean(lines, 'rows'):7.1%} {mean(lines, 'bytes_share'):7.1%} "
              f"{mean(lines, 'time'):6.2f}")


def draw(axes, policies):
    points = {}
    for policy, lines in policies.items():
        if policy != "full" and 0 < mean(lines, "loss") < math.inf:
            points.setdefault(family(policy), []).append(lines)
    for axis, (cost, label) in zip(axes, COSTS.items()):
        colours = iter(COLOURS * 3)
        for i, (name, settings) in enumerate(points.items()):
            settings = sorted(settings, key=lambda lines: mean(lines, cost))
            axis.plot([mean(lines, cost) for lines in settings], [mean(lines, "loss") for lines in settings],
                      color="#888888" if name in BASELINES else next(colours), marker=MARKERS[i % len(MARKERS)],
                      markersize=6, linewidth=1.5, label=name)
        if RECOMMENDED in policies:
            axis.plot(mean(policies[RECOMMENDED], cost), mean(policies[RECOMMENDED], "loss"), color="#000000", marker="o",
                      markersize=13, fillstyle="none", linestyle="none", label="begin here")
        axis.set_yscale("log")
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{label}, full attention = 1")


def main():
    picture, *paths = sys.argv[1:]
    if paths[0] == "--json":
        together, *paths = paths[1:]
        lines = [line for path in paths for line in json.loads(pathlib.Path(path).read_text())]
        pathlib.Path(together).write_text("[" + ",\n ".join(map(json.dumps, lines)) + "]\n")
    panels = read(paths)
    for title, policies in panels.items():
        if "kl_mean" in policies["full"][0]:
            table(title, policies)
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
                         "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
                         "grid.color": "#DDDDDD", "grid.linewidth": 0.7})
    figure, grid = plt.subplots(len(panels), 3, figsize=(15, 3.8 * len(panels)), squeeze=False, sharey="row",
                                constrained_layout=True)
    for axes, (title, policies) in zip(grid, panels.items()):
        draw(axes, policies)
        axes[0].set_title(title)
        axes[0].set_ylabel("KL to full attention, nats" if "kl_mean" in policies["full"][0] else "error of the output")
        axes[2].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
