"""Pictures, each drawn from the JSON that stands beside it."""

import io
import itertools
import json
import os
from pathlib import Path

import numpy as np

from lore.common import written_whole
from lore.fit.evaluation import ALONE, ANOTHER, LORE, POPULATION, SHARED_OWN, SHUFFLED
from lore.processes import by_first_process
from lore.report.text_tables import GROUP_NAMES, RANK_NAMES

BESIDE = 0.05  # of a rank: how far the bars of unseen users stand beside those of seen ones


def rows_of(path, name):
    """The rows of that name in PATH.json, as a data frame."""
    import pandas as pd

    return pd.DataFrame(json.loads(Path(f"{path}.json").read_text())[name])


@by_first_process
def draw(figure_of, path, *arguments):
    """PATH.png: what a function of this module makes of PATH.json."""
    save_png(figure_of(path, *arguments), path)


def rank_figure(path):
    """PATH.json: the accuracies against K >= 1, with their intervals over users.

    In grey, on unseen users: the baselines, the reference head and the best possible.
    """
    rows = rows_of(path, "summary")
    figure, axes = new_figure("rank K", "accuracy (%), bars: 95 % interval")
    by_alpha = rows[rows["K"] != 0].groupby("alpha")
    for style, (alpha, ranked) in zip(itertools.cycle(("-", "--", "-.", ":")), by_alpha):
        of_alpha = f", alpha {alpha:g}" if len(by_alpha) > 1 else ""
        plot_ranks(axes, ranked.sort_values("K"), style, of_alpha)
    lines = [(0, LORE, ":"), ("best", LORE, "--"), ("alone", ALONE, "-."), (1, SHARED_OWN, (0, (1, 4)))]
    for K, variant, style in lines:
        row = rows[(rows["K"] == K) & (rows["variant"] == variant)]
        if len(row):
            name = variant if variant == SHARED_OWN else RANK_NAMES[K].lstrip("0 ")
            grey_line(axes, 100 * row["unseen"].iloc[0], f"{name}, unseen", style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return with_legend(figure, axes, path)


def plot_ranks(axes, ranked, style, of_alpha):
    """The curves of one alpha."""
    fits = ranked[ranked["variant"] == LORE]
    for colour, (name, label) in enumerate(GROUP_NAMES.items()):
        y = 100 * fits[name].to_numpy()
        x = fits["K"].to_numpy(dtype=float) + BESIDE * (name == "unseen")
        bars = None
        if len(fits) and name in ("seen", "unseen"):
            interval = 100 * np.stack(fits[f"{name}_interval"])  # (ranks, 2)
            bars = abs(interval.T - y)
        looks = {"fmt": f"o{style}", "color": f"C{colour}", "markersize": 4, "capsize": 2}
        axes.errorbar(x, y, yerr=bars, label=label + of_alpha, **looks)
    for marker, variant in zip("xv+", (POPULATION, ANOTHER, SHUFFLED)):
        curve = ranked[ranked["variant"] == variant]
        if len(curve):
            looks = {"color": "0.6", "linewidth": 1, "label": f"{variant}, unseen{of_alpha}"}
            axes.plot(curve["K"].to_numpy(dtype=float), 100 * curve["unseen"], f"{marker}{style}", **looks)


def banded_curve(axes, x, y, spread, colour, label):
    """A curve of percentages, all between 0 and 1, with a band around it."""
    axes.plot(x, 100 * y, "o-", color=f"C{colour}", markersize=4, label=label)
    looks = {"color": f"C{colour}", "alpha": 0.2, "linewidth": 0}
    axes.fill_between(x, 100 * (y - spread), 100 * (y + spread), **looks)


def grey_line(axes, y, label, style):
    axes.axhline(y, label=label, color="0.4", linestyle=style, linewidth=1)


def shots_figure(path, shot="pairs"):
    """PATH.json: accuracy of unseen users against shots, one colour per (alpha, K).

    The band is the std over trials.
    """
    rows = rows_of(path, "rows")
    known = f"{shot} known of each unseen user (shots)"
    figure, axes = new_figure(known, "accuracy on unseen users, new prompts (%)")
    numbers = rows["shots"][rows["shots"] != "all"]
    behind = numbers.max() + 1 if len(numbers) else 1  # where "all" stands
    rows["x"] = rows["shots"].replace("all", behind).astype(int)
    if len(numbers) < len(rows):
        places = rows.drop_duplicates("x")
        axes.set_xticks(places["x"], places["shots"].astype(str))
    for colour, ((alpha, K), curve) in enumerate(rows.groupby(["alpha", "K"], sort=False)):
        curve = curve.sort_values("x")
        label = f"K = {RANK_NAMES.get(K, K)}" + (f", alpha {alpha:g}" if alpha else "")
        banded_curve(axes, curve["x"], curve["unseen"], curve["unseen_std_trials"], colour, label)
    return with_legend(figure, axes, path)


@by_first_process
def plot_mixtures(path, true, learned, title):
    """PATH.png: each seen person's true weights over the reward models beside the learned ones.

    true (C, M), learned (C, K); a line of the picture is a person.
    """
    order = np.lexsort((-true.max(axis=1), true.argmax(axis=1)))
    figure = empty_figure((7, 4))
    panels = figure.subplots(1, 2, sharey=True)
    shown = (("true mixtures", "reward model", true), (title, "basis reward", learned))
    for axes, (heading, label, weights) in zip(panels, shown):
        extent = (-0.5, weights.shape[1] - 0.5, len(weights), 0)
        looks = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
        image = axes.imshow(weights[order], vmin=0, vmax=1, **looks)
        axes.set_title(heading, fontsize=9)
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("seen people, by their strongest reward model")
    figure.colorbar(image, ax=panels, label="weight")
    save_png(figure, path)


def plot_questions(path):
    """PATH.json -> PATH.png: accuracy against questions, chosen and random; band: standard error."""
    rows = rows_of(path, "rows")
    figure, axes = new_figure("questions asked", "accuracy on other pairs, planted people (%)")
    for colour, way in enumerate(("chosen", "random")):
        banded_curve(axes, rows["questions"], rows[way], rows[f"{way}_error"], colour, f"{way} questions")
    grey_line(axes, 100 * rows["best"][0], "best possible", "--")
    axes.xaxis.get_major_locator().set_params(integer=True)
    save_png(with_legend(figure, axes, path), path)


def empty_figure(size, layout="constrained"):
    """A figure that is drawn into a file, whatever MPLBACKEND a notebook has left behind."""
    os.environ["MPLBACKEND"] = "Agg"  # matplotlib looks at it when it is imported
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()  # whatever a matplotlibrc says, LaTeX that is not there for one
    return Figure(figsize=size, layout=layout)


def new_figure(x_label, y_label):
    figure = empty_figure((6, 4))
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def with_legend(figure, axes, path):
    """The figure with its title and legend."""
    axes.set_title(Path(path).name, fontsize=9)
    if len(axes.get_legend_handles_labels()[0]) > 7:  # it would hide the curves
        figure.set_size_inches(8, 4)
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.legend(fontsize=8)
    return figure


def save_png(figure, path):
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")


def svg_of(figure):
    """A figure as SVG, to stand in a page: sharp at any size, the same bytes for the same numbers."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lore", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
