#!/usr/bin/python3
"""Stock llama.cpp with and without the plugin: tokens a second over the length of the context.

Every figure is llama-bench's own (--n-gen and --n-prompt tokens behind --n-depth, three times in one process); the
median over rounds, in each of which all settings take their turn. Called by ./run, which knows the paths.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

# Name in the JSON: (title, colour, marker, what RECYCLED_SCHEDULE says, and behind an @ RECYCLED_CAPACITY; None: without
# the plugin).
SETTINGS = {
    "stock": ("stock llama.cpp", "#E69F00", "s", None),
    "exact": ("exact", "#444444", "o", "exact"),
    "fixed_stride": ("fixed-stride:10", "#0072B2", "D", "fixed-stride:10"),
    "query_similarity": ("query-similarity:5:0.85", "#009E73", "^", "query-similarity:5:0.85"),
    "self_calibrating": ("self-calibrating", "#CC79A7", "v", "self-calibrating"),
    "sketched": ("self-calibrating, sketch", "#D55E00", "P", "self-calibrating:0.15:sketch@1/8"),
}


def environment(options, schedule):
    ours = ("RECYCLED_", "GGML_BACKEND_", "LLAMA_ARG_")
    result = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    if schedule is not None:
        schedule, _, capacity = schedule.partition("@")
        # The last one names no tensor, and makes llama-completion look for plugins.
        result |= {"GGML_BACKEND_PATH": options.plugin, "RECYCLED_SCHEDULE": schedule,
                   "RECYCLED_CAPACITY": capacity or "1/8", "LLAMA_ARG_OVERRIDE_TENSOR": "^$=CPU"}
    return result


def run(command, env):
    """(standard output, peak memory in MiB) of a program that must succeed."""
    with tempfile.TemporaryFile("w+") as log:  # not a pipe, which fills up while the other one is read
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        errors = log.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}\n{errors[-2000:]}")
    if ("recycled: attention by Recycled" in errors) != ("GGML_BACKEND_PATH" in env):
        sys.exit(f"{' '.join(command)}: not the attention that was to be measured\n{errors[-2000:]}")
    return output, usage.ru_maxrss / 1024


def speeds(options, context, schedule):
    """(tokens a second of generating, of reading a prompt: a list of each; peak MiB) behind `context` tokens."""
    output, peak = run(
        [f"{options.host}/llama-bench", "-m", options.model, "-p", str(options.prompt), "-n", str(options.tokens),
         "-d", str(context), "-fa", "1", "-t", str(options.threads), "-r", "3", "-o", "json"],
        environment(options, schedule))
    tests = json.loads(output)
    return ([sample for test in tests if test["n_gen"] > 0 for sample in test["samples_ts"]],
            [sample for test in tests if test["n_gen"] == 0 for sample in test["samples_ts"]], peak)


def show_generation(options):
    """The same prompt, continued greedily with and without the plugin."""
    with open(options.text) as file:
        prompt = file.read()[: 4 * options.generation] + "\n\nQuestion: What is this text about?\nAnswer: It is about"
    path = os.path.join(os.path.dirname(options.json), "prompt.txt")
    with open(path, "w") as file:
        file.write(prompt)
    print(f"\n== A greedy continuation of {len(prompt)} characters")
    for title, _, _, schedule in SETTINGS.values():
        output, _ = run([f"{options.host}/llama-completion", "-m", options.model, "-f", path, "-n", "40", "-c", "8192",
                         "-fa", "on", "-t", str(options.threads), "--temp", "0", "-no-cnv", "--no-display-prompt",
                         "--no-perf"], environment(options, schedule))
        print(f"{title:24} {' '.join(output.split())}")


def measure(options):
    """[{context, stock, exact, ...: median tokens/s, and its spread, prompt, peak_mib}]"""
    samples = {}
    for done in range(options.rounds):
        for context in options.contexts:
            for name, (_, _, _, schedule) in SETTINGS.items():
                samples.setdefault((context, name), []).append(speeds(options, context, schedule))
        print(f"round {done + 1} of {options.rounds} done", file=sys.stderr)
    rows = []
    for context in options.contexts:
        row = {"context": context}
        for name in SETTINGS:
            generated, read, peaks = zip(*samples[context, name])
            generated, read = sum(generated, []), sum(read, [])
            row[name] = round(statistics.median(generated), 2)
            row[f"{name}_spread"] = round((max(generated) - min(generated)) / row[name], 3)
            row[f"{name}_prompt"] = round(statistics.median(read), 1)
            row[f"{name}_peak_mib"] = round(max(peaks))
        rows.append(row)
    return rows


def add_agreement(rows, path):
    """nmse of exact and kl of the schedules, where `./run agree` measured them."""
    if not os.path.exists(path):
        return
    with open(path) as file:
        lines = json.load(file)
    by_schedule = {schedule: name for name, (*_, schedule) in SETTINGS.items()}
    for row in rows:
        for line in lines:
            if line["context"] == row["context"] and line["name"] in by_schedule:
                name = by_schedule[line["name"]]
                row |= {f"kl_{name}": line["kl"], f"nmse_{name}": line["nmse"], f"bytes_{name}": line["bytes"]}
        if "nmse_exact" in row:
            row |= {"nmse": row["nmse_exact"], "kl": row.get("kl_fixed_stride", row["kl_exact"])}


def cpu_name():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "unknown CPU"


def print_table(rows, options):
    print(f"\n{os.path.basename(options.model)}, {options.threads} threads of {cpu_name()}, tokens a second "
          f"(median of {3 * options.rounds})")
    titles = [title for title, *_ in SETTINGS.values()]
    print(f"{'context':>8} {titles[0]:>16}" + "".join(f" {title:>24}" for title in titles[1:]))
    for row in rows:
        line = f"{row['context']:8} {row['stock']:16.1f}"
        for name in list(SETTINGS)[1:]:
            line += f" {row[name]:16.1f} {row[name] / row['stock']:5.2f} x"
        print(line)
    print(f"{'peak MiB':>8} {rows[-1]['stock_peak_mib']:16}"
          + "".join(f" {rows[-1][f'{name}_peak_mib']:16}        " for name in list(SETTINGS)[1:]))
    print(f"\nreading {options.prompt} more tokens of a prompt, tokens a second")
    for row in rows:
        print(f"{row['context']:8} {row['stock_prompt']:16.1f} {row['exact_prompt']:16.1f} "
              f"{row['exact_prompt'] / row['stock_prompt']:5.2f} x")


def draw(rows, options):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=120)
    contexts = [row["context"] for row in rows]
    for name, (title, colour, marker, _) in SETTINGS.items():
        axes.plot(contexts, [row[name] for row in rows], color=colour, marker=marker, markersize=5, linewidth=1.6,
                  label=title if name == "stock" else f"with the plugin: {title}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("tokens a second")
    axes.set_title(f"{os.path.basename(options.model)}, {options.threads} threads, {cpu_name()}", fontsize=10)
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(options.picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("host", "plugin", "model", "text", "json", "picture", "agreement"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--contexts", type=lambda text: [int(part) for part in text.split(",")],
                        default=[0, 1024, 2048, 4096, 7168])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count(), 8))
    parser.add_argument("--generation", type=int, default=3000, help="about so many tokens of prompt; 0: none")
    options = parser.parse_args()
    if options.generation > 0:
        show_generation(options)
    rows = measure(options)
    add_agreement(rows, options.agreement)
    print_table(rows, options)
    with open(options.json, "w") as file:
        json.dump([row | {"cpu": cpu_name(), "threads": options.threads} for row in rows], file, indent=1)
    draw(rows, options)
    print(f"\ntable    {options.json}\npicture  {options.picture}")


if __name__ == "__main__":
    main()
