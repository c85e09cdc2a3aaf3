"""The experiment of docs/experiment.md: what its runs gave, as a table and as a figure.

    python benchmarks/experiment.py                        the table, from benchmarks/results/reward.jsonl
    python benchmarks/experiment.py --page docs/experiment.md    puts it there, and the figure beside it
    python benchmarks/experiment.py --take reward.json     keep the runs of `reward.py skill --out reward.json` there

A run is a line: the task, what moved how many numbers from which seed, and what was right of the rows held out, with
95 % intervals (Wilson's; a seed has a split of its own). The table and the figure in docs/ are made of nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whit.evaluation.statistics import wilson_interval
from whit.files import atomic_write

RESULTS = Path(__file__).parent / "results" / "reward.jsonl"
TASKS = {"sst2json": "reviews", "spamjson": "spam", "snipsword": "requests"}
WAYS = {"grpo": "GRPO", "supervised": "supervised", "es": "evolution"}
BEGIN, END = "<!-- runs: written by benchmarks/experiment.py -->", "<!-- end of runs -->"
#: what tells runs apart
KEY = ("task", "base_model", "optimizer", "numbers", "rank", "seed", "rate", "epochs", "kl")
KEPT = (
    "task", "base_model", "optimizer", "numbers", "rank", "seed", "rate", "epochs", "kl", "steps", "answers", "seconds",
    "rows", "base", "tuned", "difference", "interval", "p_value", "skill_difference", "skill_interval",
    "skill_p_value", "forgetting", "baselines",
)  # fmt: skip


def taken(path: Path) -> list[dict[str, Any]]:
    """The runs in a file of `reward.py skill --out` that belong to the experiment, as they are kept."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [
        {name: run[name] for name in KEPT if run.get(name) is not None}
        for run in found
        if run.get("figure") == "skill" and run["task"] in TASKS
    ]


def load(path: Path = RESULTS) -> list[dict[str, Any]]:
    """All runs, in the order of the table."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tasks, ways = list(TASKS), list(WAYS)
    return sorted(runs, key=lambda run: (
        run["base_model"] != "smollm2", tasks.index(run["task"]), ways.index(run["optimizer"]), run["numbers"],
        run.get("kl", 0), run["epochs"], run.get("rate") or 0, run["seed"],
    ))  # fmt: skip


def score(run: dict[str, Any]) -> tuple[float, float, float]:
    """Right of the rows held out, and its interval."""
    low, high = wilson_interval(run["tuned"] * run["rows"], run["rows"])
    return run["tuned"], low, high


def size(run: dict[str, Any]) -> str:
    """The numbers trained; of rank 8 `reward.py skill` trains LoRAs alone."""
    return f"LoRA, {run['numbers']:,}" if run["rank"] == 8 else f"{run['numbers']:,}"


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A line of Markdown for each run."""
    lines = [
        "| task, seed | how | numbers | the base | 4-shot | linear | right (95 %) | skill gained (95 %) "
        "| p, base | p, 4-shot | forgotten |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        right, low, high = score(run)
        few, linear = (run["baselines"].get(name) for name in ("4-shot", "TF-IDF + linear"))
        plain = f"{linear['score']:.3f}" if linear else ""
        skill = [run["skill_difference"], *run["skill_interval"]]
        base = "" if run["base_model"] == "smollm2" else f" ({run['base_model']})"
        how = WAYS[run["optimizer"]] + (f", rate {run['rate']:g}" if run.get("rate") else "")
        how += f", {run['epochs']:g} passes" + (f", KL {run['kl']:g}" if run.get("kl") else "")
        lines.append(
            f"| {TASKS[run['task']]}{base}, {run['seed']} | {how} | {size(run)} | {run['base']:.3f} "
            f"| {few['score']:.3f} | {plain} | {right:.3f} ({low:.3f} to {high:.3f}) "
            f"| {skill[0]:+.3f} ({skill[1]:+.3f} to {skill[2]:+.3f}) | {run['p_value']:.1g} | {few['p_value']:.1g} "
            f"| {run['forgetting']:.3f} |"
        )
    return lines


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Right of what is held out against the numbers trained, a panel for each task."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "whit",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    runs = [run for run in runs if run["base_model"] == "smollm2" and not run.get("kl")]
    figure, panels = plt.subplots(1, len(TASKS), figsize=(9.5, 3.6), sharex=True, sharey=True)
    for panel, (task, title) in zip(panels, TASKS.items(), strict=True):
        for place, (way, name) in enumerate(WAYS.items()):
            some = [run for run in runs if run["task"] == task and run["optimizer"] == way]
            if not some:
                continue
            at = [run["numbers"] * (1.0, 1.12, 0.89)[place] for run in some]  # beside one another
            values = [score(run) for run in some]
            spread = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
            panel.errorbar(at, [v for v, *_ in values], spread, fmt="osD"[place], ms=4, lw=1, capsize=2, label=name)
        first = next(run for run in runs if run["task"] == task and run["seed"] == 0)
        for value, style, name in (
            (first["base"], "-", "base"), (first["baselines"]["4-shot"]["score"], "--", "4-shot"),
            (first["baselines"].get("TF-IDF + linear", {}).get("score"), ":", "TF-IDF + linear"),
        ):  # fmt: skip
            if value is not None:
                panel.axhline(value, ls=style, lw=0.9, color="grey", label=name)
        panel.set(title=title, xscale="log", xlabel="numbers trained", ylim=(0, 1))
    panels[0].set_ylabel("right, of rows held out")
    named: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(named.values(), named.keys(), loc="lower center", ncols=len(named), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", nargs="+", type=Path, default=[], help="files of `reward.py skill --out`")
    parser.add_argument("--page", type=Path, help="put the table between its marks there, and the figure beside it")
    options = parser.parse_args()
    if options.take:
        kept = {json.dumps({name: run.get(name) for name in KEY}): run for run in (load() if RESULTS.is_file() else [])}
        for run in (run for path in options.take for run in taken(path)):
            kept[json.dumps({name: run.get(name) for name in KEY})] = run
        atomic_write(RESULTS, "".join(json.dumps(run) + "\n" for run in kept.values()))
    runs = load()
    print("\n".join(table(runs)))
    if options.page:
        before, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
        lines = "\n".join([BEGIN, "", *table(runs), "", END])
        atomic_write(options.page, before + lines + rest.partition(END)[2])
        draw(runs, options.page.with_suffix(".svg"))


if __name__ == "__main__":
    main()
