#!/usr/bin/python3
"""Draws what `bench_decode --json FILE` wrote: time a token over the length of the context.

usage: plot_decode.py ROWS.json PICTURE.png
"""
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, told apart by every kind of colour vision; the markers help in print.
LINES = {
    "onnxruntime": ("ONNX Runtime", "#CC79A7", "v"),
    "ggml": ("ggml (llama.cpp)", "#E69F00", "s"),
    "openvino": ("OpenVINO", "#56B4E9", "^"),
    "full": ("Recycled: full, exact", "#444444", "o"),
    "amortised": ("Recycled: FixedStride{10}", "#0072B2", "D"),
    "recycled": ("Recycled: a recycled step", "#009E73", "P"),
}


def growth(rows):
    """{name: [(length, microseconds)]} of the setting that was measured at most lengths with one capacity."""
    series = {}
    for row in rows:
        # Not the layout: peers run in the one that they have.
        setting = tuple(row[key] for key in ("type", "head_dim", "kv_heads", "group", "capacity", "threads"))
        series.setdefault(setting, {}).setdefault(row["name"], []).append((row["length"], row["us"]))
    setting = max(series, key=lambda s: max(len(points) for points in series[s].values()))
    return setting, series[setting]


def main(source, picture):
    with open(source) as file:
        rows = json.load(file)
    if not rows:
        sys.exit(f"{source}: no rows")
    (kind, dim, heads, group, capacity, threads), lines = growth(rows)
    if max(len(points) for points in lines.values()) < 2:
        sys.exit(f"no picture: {source} has no setting at two lengths")
    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=120)
    for name, (label, colour, marker) in LINES.items():
        if name in lines:
            lengths, times = zip(*sorted(lines[name]))
            axes.plot(lengths, times, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xticks(lengths, [f"{length // 1024}K" for length in lengths])
    axes.set_xlabel("positions in the context")
    axes.set_ylabel("µs a token and layer")
    axes.set_title(
        f"{heads} KV heads, {group} query heads each, {dim} dimensions, {kind}, K = {capacity}, {threads} threads\n"
        f"{rows[0]['cpu']} ({rows[0]['isa']})",
        fontsize=10,
    )
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8.5, frameon=False)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
