"""Tables, JSON and pictures of what was found."""

import itertools
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lore.common import written_whole
from lore.evaluation import ALL_SHOTS, ALONE, ANOTHER, LORE, POPULATION, SHUFFLED, summarise
from lore.mixtures import EVERYBODY
from lore.processes import by_first_process
from lore.ridge import PERSONAL_SPREADS

GROUP_NAMES = {
    "train": "train",
    "seen": "seen",
    "few_shot_train": "few-shot train",
    "unseen": "unseen",
}
RANK_NAMES = {0: "0 reference", 1: "1 Bradley-Terry", "best": "best possible", "alone": ALONE}


def report(path, cells, args, rows=None):
    """Print the choices and the table; PATH.json with the rows of all cells and their summary, PATH.png. -> summary"""
    over = "splits" if args.resplit else "seeds"
    summary = summarise(cells, over)
    print_choices(cells)
    print_run_table(summary, over)
    save_results(path, run_rows(cells) if rows is None else rows, args, summary=summary)
    plot_accuracy_vs_rank(path)
    return summary


def run_rows(cells):
    """One dict per cell: mean over users of each accuracy and its std over users; what the ridge solver chose."""
    rows = []
    for cell in cells:
        row = {"seed": cell.seed, "alpha": cell.alpha, "K": cell.K, "model": cell.model}
        row |= {name: float(accuracy.mean()) for name, accuracy in cell.accuracy.items()}
        row |= {
            f"{name}_std_users": float(accuracy.std()) for name, accuracy in cell.accuracy.items()
        }
        if cell.model == LORE and cell.fit is not None and cell.fit.choice:
            row["choice"] = cell.fit.choice
        rows.append(row)
    return rows


def few_shot_rows(result, K_list, alpha_list, num_shots):
    """FewShotResult -> one dict per (alpha, K, shots): std over trials, interval over users. Rows of NaN left out."""
    rows, summaries = [], iter(summarise(result.cells))
    for (a, _), (k, _), (s, shots) in itertools.product(
        *map(enumerate, (alpha_list, K_list, num_shots))
    ):
        _, few_std, _, unseen_std = (float(array[a, k, s]) for array in result)
        if not np.isnan(unseen_std):
            row = {
                "few_shot_train_std_trials": few_std,
                "unseen_std_trials": unseen_std,
                **next(summaries),
            }
            rows.append(row | {"shots": "all" if shots == ALL_SHOTS else shots})
    return rows


def print_health(rows):
    """One aligned line per fitted basis whose row holds its basis_health."""
    keys = [
        key
        for key in ("K", "alpha", "seed")
        if key == "K" or len({row[key] for row in rows} - {None}) > 1
    ]
    lines = [[*keys, "columns", "alike", "cosine to head", "used", "used by one"]]
    for row in (row for row in rows if "columns" in row):
        alike = "-" if row["alike"] is None else f"{row['alike']:.2f}"
        head = "-" if row["to_head"] is None else "{:.2f} .. {:.2f}".format(*row["to_head"])
        numbers = [
            str(row["columns"]),
            alike,
            head,
            f"{row['used']:.1f}",
            f"{row['used_by_one']:.1f}",
        ]
        lines.append([*(key_text(row, key) for key in keys), *numbers])
    print_aligned(lines)
    print(
        "alike: largest |cos| of two columns; used: columns the population uses, in effect, and one person on average"
    )
    print(
        "alike or cosine to head near 1, or used near 1 at a higher rank: a basis that has collapsed"
    )


def print_run_table(summary, over="seeds"):
    """One aligned line per (alpha, K) and baseline, in percent; a line for each that shuffled labels reach as well."""
    several = any(f"unseen_std_{over}" in row for row in summary)
    print_table(summary, ["K", "alpha"], GROUP_NAMES, over if several else None)
    print_legend(summary, f" ± std over {over}" if several else "")
    for row in summary:
        for name in ("seen", "unseen"):
            difference, low, high = row.get(f"{name}_over_shuffled", (1, 1, 1))
            if low <= 0:
                alpha = (
                    f", alpha {row['alpha']:g}"
                    if len({r["alpha"] for r in summary} - {None}) > 1
                    else ""
                )
                interval = f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                print(
                    f"no better than shuffled labels: K = {key_text(row, 'K')}{alpha}, {name}: {interval}"
                )


def print_few_shot_table(rows):
    """One aligned line per (alpha, K, shots)."""
    print_table(rows, ["K", "alpha", "shots"], ("few_shot_train", "unseen"), "trials")
    print_legend(rows, " ± std over trials")


def print_legend(rows, spread):
    gain = "; last column: paired difference" if any("unseen_gain" in row for row in rows) else ""
    print(f"accuracy in percent, mean over users{spread} [95 % interval over users]{gain}")


def print_table(rows, keys, names, over):
    """Aligned columns: the keys (alpha only where there are several), then each accuracy, and what personal adds."""
    keys = [
        key for key in keys if key != "alpha" or len({row["alpha"] for row in rows} - {None}) > 1
    ]
    gains = ["over Bradley-Terry, unseen"] if any("unseen_gain" in row for row in rows) else []
    lines = [[*keys, *(GROUP_NAMES[name] for name in names), *gains]]
    for row in rows:
        line = [key_text(row, key) for key in keys]
        for name in names:
            std = row.get(f"{name}_std_{over}")
            spread = "" if not over else " " * 6 if std is None else f" ±{100 * std:4.1f}"
            held_out = name in ("seen", "unseen")
            interval = (
                " [{:4.1f}, {:4.1f}]".format(*(100 * np.array(row[f"{name}_interval"])))
                if held_out
                else ""
            )
            line.append(f"{100 * row[name]:5.1f}{spread}{interval}")
        if gains:
            gain = 100 * np.array(row.get("unseen_gain", []))
            line.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*gain) if len(gain) else "")
        lines.append(line)
    print_aligned(lines)


def print_choices(cells):
    """What the ridge solver chose, and the gains on held-out prompts that it chose by. Nothing for other solvers."""
    own = [
        cell for cell in cells if cell.model == LORE and cell.fit is not None and cell.fit.choice
    ]
    choices = {(cell.seed, cell.K): cell.fit.choice for cell in own}
    gain_text = lambda gain: "{:+.4f} ±{:.4f}".format(*gain)
    for seed in dict.fromkeys(seed for seed, _ in choices):
        lines = [["K", *(f"p = {p:g}" for p in PERSONAL_SPREADS), "chosen", "as new", "prior"]]
        for K, choice in ((K, choice) for (start, K), choice in choices.items() if start == seed):
            end = ["1 Bradley-Terry", "", ""]
            if choice.get("personal_spread"):
                strength = choice["strength"]
                prior = "everybody's" if float(strength) == EVERYBODY else f"{strength} pairs"
                end = [
                    f"p = {choice['personal_spread']:g}",
                    gain_text(choice["gain_as_new"][strength]),
                    prior,
                ]
            if "gain" in choice:
                lines.append([str(K), *map(gain_text, choice["gain"]), *end])
        path = zip(choice["common_spreads"], choice["common_held_out_loss"])
        print(
            f"ridge, seed {seed}: held-out loss of Bradley-Terry "
            + ", ".join(f"{s:.2g}: {v:.4f}" for s, v in path)
        )
        print(f"chosen s = {choice['common_spread']:.2g}")
        if len(lines) > 1:
            print(
                "what more rewards than that one gain in log P of a held-out pair, ± standard error:"
            )
            print_aligned(lines)


def print_aligned(lines):
    """Lists of texts as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:])),
                ]
            )
        )


def key_text(row, key):
    if key == "K":
        name = str(RANK_NAMES.get(row["K"], row["K"]))
        return f"{name}, {row['model']}" if row.get("model") not in (None, LORE, ALONE) else name
    return "" if row[key] is None else str(row[key])


@by_first_process
def save_results(path, rows, args, **more):
    """PATH.json: settings, versions, git commit, rows, and what else is given."""
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }
    environment = {
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "numpy")},
    }
    report = {
        "settings": settings,
        "environment": environment,
        "git_commit": git_commit(),
        "rows": rows,
    }
    with written_whole(f"{path}.json") as file:
        file.write_text(json.dumps(report | more, indent=2, allow_nan=False) + "\n")


def git_commit():
    """Commit of this code, with "+" where the files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"])
        commit, changes = (
            subprocess.run(c, cwd=here, capture_output=True, text=True, check=True).stdout
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changes else "")


@by_first_process
def plot_accuracy_vs_rank(path):
    """PATH.json -> PATH.png: the accuracies against K >= 1 with their intervals over users; in grey, on unseen users,
    the baselines, the reference head and the best possible."""
    rows = json.loads(Path(f"{path}.json").read_text())["summary"]
    figure, axes = new_figure("rank K", "accuracy (%), bars: 95 % interval over users")
    alphas = sorted({r["alpha"] for r in rows} - {None})
    for style, alpha in zip(itertools.cycle(("-", "--", "-.", ":")), alphas):
        ranked = sorted(
            (r for r in rows if r["alpha"] == alpha and r["K"] != 0), key=lambda r: r["K"]
        )
        of_alpha = f", alpha {alpha:g}" * (len(alphas) > 1)
        for colour, (name, label) in enumerate(GROUP_NAMES.items()):
            curve = [r for r in ranked if r["model"] == LORE]
            y, interval = (
                100 * np.array([r[key] for r in curve]) for key in (name, f"{name}_interval")
            )
            axes.errorbar(
                [r["K"] for r in curve], y, yerr=abs(interval.T - y) if curve and name in ("seen", "unseen") else None,
                fmt=f"o{style}", color=f"C{colour}", markersize=4, capsize=2, label=label + of_alpha,
            )  # fmt: skip
        for marker, model in zip("xv+", (POPULATION, ANOTHER, SHUFFLED)):
            curve = [(r["K"], 100 * r["unseen"]) for r in ranked if r["model"] == model]
            if curve:
                axes.plot(
                    *zip(*curve),
                    f"{marker}{style}",
                    color="0.6",
                    linewidth=1,
                    label=f"{model}, unseen{of_alpha}",
                )
    for K, style in ((0, ":"), ("best", "--"), ("alone", "-.")):
        for row in [r for r in rows if r["K"] == K][:1]:
            label = f"{RANK_NAMES[K].lstrip('0 ')}, unseen"
            axes.axhline(
                100 * row["unseen"], color="0.4", linestyle=style, linewidth=1, label=label
            )
    axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, axes, path)


@by_first_process
def plot_accuracy_vs_shots(path, shot="pairs"):
    """PATH.json -> PATH.png: accuracy of unseen users against shots; one colour per (alpha, K), band: std of trials."""
    rows = json.loads(Path(f"{path}.json").read_text())["rows"]
    figure, axes = new_figure(
        f"{shot} known of each unseen user (shots)", "accuracy on unseen users, new prompts (%)"
    )
    numbers = sorted({r["shots"] for r in rows} - {"all"})
    place = {**{shots: shots for shots in numbers}, "all": max(numbers, default=0) + 1}
    if any(r["shots"] == "all" for r in rows):
        axes.set_xticks(list(place.values()), list(map(str, place)))
    for colour, (alpha, K) in enumerate(dict.fromkeys((r["alpha"], r["K"]) for r in rows)):
        curve = sorted(
            (r for r in rows if (r["alpha"], r["K"]) == (alpha, K)), key=lambda r: place[r["shots"]]
        )
        shots = [place[r["shots"]] for r in curve]
        y, spread = (
            100 * np.array([r[key] for r in curve]) for key in ("unseen", "unseen_std_trials")
        )
        label = f"K = {RANK_NAMES.get(K, K)}" + (f", alpha {alpha:g}" if alpha else "")
        axes.plot(shots, y, "o-", color=f"C{colour}", markersize=4, label=label)
        axes.fill_between(shots, y - spread, y + spread, color=f"C{colour}", alpha=0.2, linewidth=0)
    save_figure(figure, axes, path)


def new_figure(x_label, y_label):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(figure, axes, path):
    from matplotlib import pyplot

    axes.set_title(Path(path).name, fontsize=9)
    if len(axes.get_legend_handles_labels()[0]) > 7:  # it would hide the curves
        figure.set_size_inches(8, 4)
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.legend(fontsize=8)
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)


def report_few_shot(path, result, args, shot="pairs"):
    """Print the choices and the curve; PATH.json with a row per (alpha, K, shots), PATH.png."""
    alpha_list = list(dict.fromkeys(cell.alpha for cell in result.cells))
    rows = few_shot_rows(result, args.K_list, alpha_list, args.num_shots)
    print_choices(result.cells)
    print_few_shot_table(rows)
    save_results(path, rows, args)
    plot_accuracy_vs_shots(path, shot)
