"""What is said of all methods: a row each, places over the data sets, tables and a picture."""

import numpy as np

from lore.common import written_whole
from lore.fit.evaluation import TESTED
from lore.report.pictures import empty_figure
from lore.report.statistics import paired_difference, summarise
from lore.report.text_tables import Table, accuracy_text, difference_text, print_table
from rivals.ours import COMMON, HEAD

RESAMPLES = 2000  # of the data sets, for the interval of a mean place
TIE = 6  # decimals of an accuracy, beyond which two are equal
COLUMNS = ("seen", "unseen", f"over {COMMON}", "log-loss", "s to fit", "ms a person", "numbers", "rank")
ABSENT = "-"
LEGEND = 1.4  # inches below the panels of the picture

# ------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------


def rows_of(entries):
    """A dict per method, the best on unseen people first; those without a fit last.

    entries: {method: [Entry, ..] or the reason why there are none}
    """
    rows = []
    reasons = []
    for method, by_seed in entries.items():
        if isinstance(by_seed, str):
            reasons.append({"method": method, "reason": by_seed})
            continue
        (summary,) = summarise(cells_of(entries, method))
        for name in ("alpha", "K", "variant"):  # of a sweep
            del summary[name]
        row = {"method": method, **summary}
        row["over_common"] = difference(entries, method, COMMON)
        row["seconds"] = float(np.mean([entry.seconds for entry in by_seed]))
        row["milliseconds_new"] = None
        if by_seed[0].seconds_new is not None:
            row["milliseconds_new"] = 1000 * float(np.mean([entry.seconds_new for entry in by_seed]))
        row["numbers"] = by_seed[0].numbers
        row["ranks"] = [entry.rank for entry in by_seed if entry.rank is not None]
        rows.append(row)
    rows.sort(key=lambda row: -row["unseen"])
    rows += reasons
    places = places_of(rows)
    for row in rows:
        row["place"] = places.get(row["method"])
    return rows


def cells_of(entries, method):
    return [entry.cell._replace(K=method) for entry in entries[method]]


def difference(entries, method, baseline):
    """[mean, low, high] on unseen people."""
    return paired_difference(cells_of(entries, method), cells_of(entries, baseline), "unseen")


def places_of(rows):
    """{method: place}; 1 = best on unseen people; equal ones share a mean place, those without a fit the last."""
    import pandas as pd

    scores = {row["method"]: round(row.get("unseen", -1.0), TIE) for row in rows}
    scores.pop(HEAD, None)
    return pd.Series(scores).rank(ascending=False).to_dict()


def mean_places(tables):
    """{method: [mean, low, high]} of the places in all tables, drawn over tables, the best first."""
    by_method = {}
    for rows in tables.values():
        for row in rows:
            if row["place"] is not None:
                by_method.setdefault(row["method"], []).append(row["place"])
    places = np.array([*by_method.values()]).T  # (tables, methods)
    drawn = np.random.default_rng(0).integers(len(places), size=(RESAMPLES, len(places)))
    means = places[drawn].mean(1)  # (RESAMPLES, methods)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    intervals = dict(zip(by_method, np.stack([places.mean(0), low, high], axis=1).tolist()))
    return dict(sorted(intervals.items(), key=lambda item: item[1][0]))


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def print_rows(data_set, rows):
    lines = []
    reasons = []
    for row in rows:
        texts = [""] * len(COLUMNS)
        if "reason" in row:
            reasons.append(f"{row['method']}: {row['reason']}")
        else:
            texts = row_texts(row)
        lines.append([row["method"], *texts])
    print_table(Table([data_set, *COLUMNS], lines, reasons))
    print(flush=True)


def row_texts(row):
    new = row["milliseconds_new"]
    return [
        *(accuracy_text(row, group).strip() if group in row else ABSENT for group in TESTED),
        difference_text(row["over_common"]),
        log_loss_text(row),
        f"{row['seconds']:.1f}",
        ABSENT if new is None else f"{new:.1f}",
        ABSENT if row["numbers"] is None else str(row["numbers"]),
        " ".join(map(str, row["ranks"])) or ABSENT,
    ]


def log_loss_text(row):
    """The head's log-odds have a scale that nobody chose."""
    return ABSENT if row["method"] == HEAD else f"{row['unseen_log_loss']:.3f}".lstrip("0")


def unseen_text(row):
    """Accuracy in percent and log-loss; + or - where the difference in accuracy to COMMON is clear of none."""
    if "reason" in row:
        return ABSENT
    _, low, high = row["over_common"]
    mark = "+" if low > 0 else "-" if high < 0 else ""
    return f"{100 * row['unseen']:.1f}{mark} {log_loss_text(row)}"


def overview(tables, places):
    """Lines of texts: methods by their mean place over everything, a column per kind of place and per data set.

    places: {"all", "planted", "real": mean_places of these data sets}
    """
    lines = [["accuracy, log-loss", *(f"place: {kind}" for kind in places), *tables]]
    for method in (*places["all"], HEAD):
        line = [method]
        for of_kind in places.values():
            line.append("{:.1f} [{:.1f}, {:.1f}]".format(*of_kind[method]) if method in of_kind else "")
        for rows in tables.values():
            of_method = {row["method"]: row for row in rows}
            line.append(unseen_text(of_method[method]))
        lines.append(line)
    return lines


def as_markdown(lines):
    head, *rest = lines
    rows = [head, ["---"] * len(head), *rest]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# ------------------------------------------------------------------------------------------------
# The picture
# ------------------------------------------------------------------------------------------------


def plot(path, tables):
    """PATH: accuracy of unseen people against seconds, one panel a data set."""
    from matplotlib import colormaps

    columns = min(5, len(tables))
    count = -(-len(tables) // columns)
    height = 3.2 * count + LEGEND
    size = (max(9, 4 * columns + 1), height)  # inches; the legend is four names wide
    figure = empty_figure(size, layout=None)
    panels = figure.subplots(count, columns, squeeze=False)
    names = sorted({row["method"] for row in next(iter(tables.values()))} - {HEAD})
    palette = colormaps["tab20"].colors
    for panel, (data_set, rows) in zip(panels.flat, tables.items()):
        for row in rows:
            if "reason" not in row and row["method"] != HEAD:
                low, high = row["unseen_interval"]
                bars = [[100 * (row["unseen"] - low)], [100 * (high - row["unseen"])]]
                panel.errorbar(
                    max(row["seconds"], 0.01), 100 * row["unseen"], bars, fmt="o", ms=5, lw=0.8,
                    color=palette[names.index(row["method"]) % len(palette)], label=row["method"],
                )  # fmt: skip
        panel.set_xscale("log")
        panel.set_title(data_set, fontsize=10)
    for panel in panels.flat[len(tables) :]:
        panel.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8)
    figure.supxlabel("seconds to fit", y=LEGEND / height, va="top", fontsize=9)
    figure.supylabel("accuracy on unseen people, percent", fontsize=9)
    figure.tight_layout(rect=(0.02, LEGEND / height, 1, 1))
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=130)
