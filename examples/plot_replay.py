#!/usr/bin/python3
"""Draws what `replay --steps FILE` wrote: error of the output and time a token over the decode steps.

usage: plot_replay.py STEPS.csv PICTURE.png
"""
import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's colours, told apart by every kind of colour vision; the line styles help in print.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
STYLES = ["-", (0, (5, 1)), (0, (1, 1)), (0, (5, 1, 1, 1))]
REFERENCE = "#444444"
WINDOW = 40  # steps that a line is the mean of


def read(path):
    """{policy: {column: values by step}}, in the order of the file."""
    columns = ("step", "error", "microseconds")
    rows = {}
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if not set(("policy", *columns)) <= set(reader.fieldnames or ()):
            sys.exit(f"{path}: not a file that `replay --steps` wrote: a column is missing")
        for row in reader:
            rows.setdefault(row["policy"], []).append([float(row[column]) for column in columns])
    if "full" not in rows:
        sys.exit(f"{path}: not a file that `replay --steps` wrote: no rows of the policy 'full'")
    return {policy: dict(zip(columns, np.array(values).T)) for policy, values in rows.items()}


def smooth(values):
    """Running mean, centred; nothing where the window would reach over an end."""
    window = min(WINDOW, len(values))
    means = np.convolve(values, np.ones(window) / window, "valid")
    return np.pad(means, (window // 2, window - 1 - window // 2), constant_values=np.nan)


def positive(values):
    """For a logarithmic axis: a full step has no error."""
    return np.where(values > 0, values, np.nan)


def draw(policies, path):
    plt.rcParams.update({"font.size": 12, "axes.titlesize": 12, "axes.titleweight": "bold",
                         "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
                         "axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.7})
    figure, (error, time) = plt.subplots(2, 1, figsize=(9, 6.8), sharex=True, constrained_layout=True)
    full = policies.pop("full")
    time.plot(full["step"], smooth(full["microseconds"]), color=REFERENCE, linewidth=2, label="full attention")
    for i, (policy, data) in enumerate(policies.items()):
        dots = {"color": COLOURS[i % len(COLOURS)], "marker": ".", "linestyle": "", "markersize": 3, "alpha": 0.3}
        line = {"color": dots["color"], "linestyle": STYLES[i % len(STYLES)], "linewidth": 2.2, "label": policy}
        error.plot(data["step"], positive(data["error"]), **dots)
        error.plot(data["step"], positive(smooth(data["error"])), **line)
        time.plot(data["step"], data["microseconds"], **dots)
        time.plot(data["step"], smooth(data["microseconds"]), **line)

    error.set(yscale="log", ylabel="relative error (log)", title="Error of the output against full attention")
    error.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    error.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    error.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    slow = np.percentile(np.concatenate([data["microseconds"] for data in (full, *policies.values())]), 99.5)
    time.set(xlabel=f"decode step (dots: each step; lines: mean of {WINDOW})", ylabel="time a token (µs)",
             title="Time a token: recycled steps, and now and then a full one", xlim=(0, full["step"][-1]),
             ylim=(0, 1.1 * slow))
    columns = 4 if max(map(len, policies)) < 25 else 3  # so that long names fit
    time.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=min(len(policies) + 1, columns), frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(read(sys.argv[1]), sys.argv[2])
