"""What a run leaves behind: JSON first, then what is printed, then the picture."""

import json
import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lore.common import written_whole
from lore.fit.evaluation import ALL_SHOTS, LORE, TESTED
from lore.fit.product import rounded_alike
from lore.fit.refits import cross_validated
from lore.processes import by_first_process
from lore.report.pictures import draw, rank_figure, shots_figure
from lore.report.ridge_tables import print_ridge_choices
from lore.report.statistics import by_user, summarise
from lore.report.text_tables import accuracy_text, few_shot_tables, print_both_sides, print_table, run_tables


def report_run(path, cells, args, rows=None, **more):
    """PATH.json with the rows of all cells, their summary and more; the choices and the table; PATH.png.

    -> summary
    """
    if any(cell.K == "best" for cell in cells):
        print(f"planted people: the best possible accuracy is {args.planted_accuracy:.0%} by construction")
    over = "splits" if args.resplit else "seeds"
    summary = summarise(cells, over)
    chosen = summarise(cross_validated(cells), over)
    more = {"summary": summary, "cross_validated": chosen, **more}
    save_results(path, run_rows(cells) if rows is None else rows, args, **more)
    print_ridge_choices(cells)
    for table in run_tables(summary, over):
        print_table(table)
    print_cross_validated(chosen, over)
    print_both_sides(cells)
    print_rounding(cells)
    draw(rank_figure, path)
    return summary


def print_cross_validated(rows, over):
    """The accuracies with the rank that each split or seed chose by itself, where there are several."""
    for row in rows:
        if f"unseen_std_{over}" in row:
            of_groups = [f"{name} {accuracy_text(row, name, over).strip()}" for name in TESTED]
            print(f"a rank chosen anew in each of the {over}, alpha {row['alpha']:g}: {', '.join(of_groups)}")


def print_rounding(cells):
    """One line where this machine does not give a rank of a sweep the row that it has alone."""
    fits = [cell for cell in cells if cell.variant == LORE and cell.K not in (0, "best")]
    ranks = [cell.K for cell in fits]
    if len(ranks) > 1:
        n = len(fits[0].outcomes["train"].user)
        V = fits[0].fit.V
        if not rounded_alike(n, len(V), ranks, V.device):
            beside = "this machine rounds a fit by what is fitted beside it"
            print(f"{beside}: a rank alone (--K_list K) gives another row")


def report_few_shot(path, result, args, shot="pairs", **more):
    """PATH.json with a row per (alpha, K, shots) and more; the choices and the curve; PATH.png."""
    rows = few_shot_rows(result)
    save_results(path, rows, args, **more)
    print_ridge_choices(result.cells)
    for table in few_shot_tables(rows):
        print_table(table)
    print_both_sides(result.cells)
    draw(shots_figure, path, shot)


def run_rows(cells):
    """One dict per cell: mean and std over users of each accuracy, every user's own numbers, and what
    the ridge solver chose."""
    rows = []
    for cell in cells:
        row = {"seed": cell.seed, "alpha": cell.alpha, "K": cell.K, "variant": cell.variant}
        if cell.best is not None:
            row["best"] = cell.best
        if cell.held_out is not None and math.isfinite(cell.held_out):
            row["held_out"] = cell.held_out
        for name, accuracy in cell.accuracy.items():
            row[name] = float(accuracy.mean())
            row[f"{name}_std_users"] = float(accuracy.std())
        if cell.variant == LORE and cell.fit is not None and cell.fit.choice:
            row["choice"] = cell.fit.choice
        rows.append(row | of_each_user(cell))
    return rows


def of_each_user(cell):
    """What a reader needs to compute anything else: per group the ids, pairs, accuracies, log-losses."""
    by_group = {}
    for name, outcomes in (cell.outcomes or {}).items():
        by_group[name] = {
            "user": [*cell.users[name]],
            "pairs": np.bincount(outcomes.user).tolist(),
            "accuracy": cell.accuracy[name].tolist(),
            "log_loss": by_user(outcomes.user, outcomes.log_loss).tolist(),
        }
    return {"of_each_user": by_group, "both_sides": cell.both_sides}


def few_shot_rows(result):
    """FewShotResult -> one dict per (alpha, K, shots): std over trials, interval over users."""
    rows = []
    for cell, row in zip(result.cells, summarise(result.cells)):
        for name, std in cell.std_trials.items():
            row[f"{name}_std_trials"] = float(std)
        row["shots"] = "all" if cell.shots == ALL_SHOTS else cell.shots
        rows.append(row | of_each_user(cell))
    return rows


@by_first_process
def save_results(path, rows, args, **more):
    """PATH.json: settings, versions, git commit, rows, and what else is given."""
    environment = {"python": sys.version.split()[0], "torch": version("torch"), "numpy": version("numpy")}
    made_by = {"settings": vars(args), "environment": environment, "git_commit": git_commit()}
    with written_whole(f"{path}.json") as file:
        file.write_text(as_json({**made_by, "rows": rows, **more}) + "\n")


def as_json(results):
    """Indented, but a row is one line: it holds numbers of every user."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list):
            lines = [json.dumps(row, allow_nan=False) for row in value]
            text = "[\n    " + ",\n    ".join(lines) + "\n  ]"
        else:
            text = json.dumps(value, indent=2, allow_nan=False, default=str)  # of a path
            text = text.replace("\n", "\n  ")
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def git_commit():
    """Commit of this code, with "+" where its files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None
