"""Tables of what was found, all their cells text: a script prints them, apply/page.py shows them as HTML."""

from itertools import chain
from typing import NamedTuple

from lore.fit.evaluation import ALONE, LORE, SHARED_OWN, TESTED
from lore.fit.groups import Groups

GROUP_NAMES = {name: name.replace("few_shot_", "few-shot ") for name in Groups._fields}
# of a rank, not among a row's own numbers
OF_A_RANK = ("K", "best", "_gain", "_detectable", "_over_shared_own")
RANK_NAMES = {0: "0 reference", 1: "1 Bradley-Terry", "best": "best possible", "alone": ALONE}
WHERE_THEY_DIFFER = ("alpha", "seed")  # keys that are shown only where rows differ in them
STAR = " *"


class Table(NamedTuple):
    """Rows of text under a head, and the sentences that say how to read them."""

    head: list
    rows: list
    notes: list = ()


def print_table(table):
    print_aligned([table.head, *table.rows])
    for note in table.notes:
        print(note)


def print_aligned(lines):
    """Lists of texts as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]
        print("  ".join(cells))


def table_of(rows, keys, head, texts_of, notes=()):
    """A line for each row: of the keys those in which rows differ, then texts_of(row) under `head`."""
    keys = shown(keys, rows)
    lines = []
    for row in rows:
        of_keys = [key_text(row, key) for key in keys]
        lines.append([*of_keys, *texts_of(row)])
    return Table([*keys, *head], lines, notes)


# ------------------------------------------------------------------------------------------------
# Accuracies, of a sweep and of a few-shot curve
# ------------------------------------------------------------------------------------------------


def run_tables(summary, over="seeds"):
    """Tables with one row per (alpha, K) and baseline, in percent; what a fit does not beat is called out.

    Ranks of the same numbers, such as those at which the ridge solver found nothing personal, are
    one row.
    """
    rows = merged(summary)
    if not any(f"unseen_std_{over}" in row for row in rows):
        over = None
    notes = [
        *reading(rows, over),
        *not_beaten(rows, "over_shuffled", "no better than shuffled labels"),
        *not_beaten(rows, "over_shared_own", f'no better than "{SHARED_OWN}"'),
    ]
    keys = ["K", "alpha"]
    return [accuracy_table(rows, keys, GROUP_NAMES, over, notes), *likelihood_tables(rows, keys)]


def few_shot_tables(rows):
    """Tables with one row per (alpha, K, shots)."""
    keys = ["K", "alpha", "shots"]
    names = ("few_shot_train", "unseen")
    table = accuracy_table(rows, keys, names, "trials", reading(rows, "trials"))
    return [table, *likelihood_tables(rows, keys)]


def accuracy_table(rows, keys, names, over=None, notes=()):
    """The keys, the accuracy of each named group, and what personal adds; over: of the ±."""
    gained = any("unseen_gain" in row for row in rows)

    def texts_of(row):
        texts = [accuracy_text(row, name, over) for name in names]
        if gained:
            texts.append(difference_text(row["unseen_gain"]) if "unseen_gain" in row else "")
        return texts

    head = [*map(GROUP_NAMES.get, names)] + ["over Bradley-Terry, unseen"] * gained
    return table_of(rows, keys, head, texts_of, notes)


def reading(rows, over):
    """How an accuracy table is read, and what it could have shown."""
    spread = f" ± std over {over}" if over else ""
    gain = "; last column: paired difference" if any("unseen_gain" in row for row in rows) else ""
    interval = rows[0]["interval"]
    notes = [f"accuracy in percent, mean over users{spread} [95 % interval over {interval}]{gain}"]
    if any(row.get("starred") for row in rows):
        notes.append("*: the rank that held-out training prompts speak for; test pairs had no say")
    return notes + smallest_difference(rows)


def smallest_difference(rows):
    """What gain over Bradley-Terry a fit could have shown; one that is Bradley-Terry could show none."""
    fits = [row for row in rows if row.get("variant") == LORE and row["K"] not in (0, "best")]
    least = []
    for name in TESTED:
        smallest = [row[f"{name}_detectable"] for row in fits if f"{name}_detectable" in row]
        least += [(name, 100 * max(smallest))] if smallest else []
    if not least:
        return []
    if not any(points for _, points in least):
        return ["every rank chooses as Bradley-Terry does: no difference to it could be tested"]
    points = ", ".join(f"{name} {points:.1f}" for name, points in least if points)
    text = "smallest difference to Bradley-Terry that any rank could have shown (80 % power)"
    return [f"{text}: {points} points"]


def likelihood_tables(rows, keys):
    """What lies behind the accuracies of the tested groups; none where no pairs were kept."""
    rows = [row for row in rows if "unseen_log_loss" in row]
    if not rows:
        return []
    names = [name for name in TESTED if f"{name}_log_loss" in rows[0]]
    head = []
    for name in names:
        head += [f"{name}: log-loss", "off", "worst tenth (chance)"]
    notes = [
        "log-loss: mean over users of -log P, 0.693 = a coin; off: expected calibration error, points",
        "worst tenth: their accuracy (and what it would be if all users were alike)",
    ]

    def texts_of(row):
        return chain.from_iterable(likelihood_texts(row, name) for name in names)

    return [table_of(rows, keys, head, texts_of, notes)]


def likelihood_texts(row, name):
    """Log-loss, calibration error and worst tenth of a group."""
    worst, chance = row[f"{name}_worst_tenth"]
    tenth = f"{100 * worst:.1f} ({100 * chance:.1f})"
    if row["K"] in (0, "best"):  # rewards on a scale of their own
        return ["-", "-", tenth]
    off = 100 * row[f"{name}_calibration_error"]
    return [f"{row[f'{name}_log_loss']:.3f}", f"{off:.1f}", tenth]


def not_beaten(rows, what, text):
    """One line that names the rows whose paired difference is not told from none, or is below it."""
    no_better = []
    for row in rows:
        for name in TESTED:
            difference = row.get(f"{name}_{what}")
            if difference and difference[1] <= 0:
                of_alpha = f", alpha {row['alpha']:g}" if "alpha" in shown(["alpha"], rows) else ""
                no_better.append(f"K = {rank_text(row)}{of_alpha}, {name}: {difference_text(difference)}")
    return [f"{text}: {'; '.join(no_better)}"] if no_better else []


def print_both_sides(cells):
    """How many of the tested items the basis was fitted to through other people."""
    parts = []
    for name in TESTED:
        counts = {tuple(cell.both_sides[name]) for cell in cells if name in (cell.both_sides or {})}
        parts += [f"{shared} of {items} ({name})" for shared, items in sorted(counts)[-1:]]
    if parts:
        print(f"tested items on which others were trained: {', '.join(parts)}")


# ------------------------------------------------------------------------------------------------
# Rows and cells
# ------------------------------------------------------------------------------------------------


def merged(summary):
    """The rows, those of one variant and alpha with the same numbers as one row of several ranks.

    Their K is the text of their ranks; Bradley-Terry keeps a row of its own, the others are "as 1".
    """
    rows = {}
    for row in summary:
        numbers = [str(row[name]) for name in sorted(row) if not name.endswith(OF_A_RANK)]
        ranked = isinstance(row["K"], int) and row["K"] > 0
        key = " ".join(numbers) if ranked else id(row)
        rows.setdefault(key, []).append(row | {"starred": is_starred(row, summary)})
    result = []
    for same in rows.values():
        starred = {"starred": any(row["starred"] for row in same)}
        if same[0]["K"] == 1 and same[0]["variant"] == LORE and len(same) > 1:
            result.append(same[0])  # it stands for itself, and the others are as it
            as_first = f"{ranks_text(same[1:])} as 1"
            result.append(same[1] | {"K": as_first, "starred": False})
        elif len(same) > 1:
            result.append(same[-1] | {"K": ranks_text(same)} | starred)
        else:
            result += same
    return result


def is_starred(row, summary):
    """Whether most repeats had this rank as the best on held-out training prompts."""
    if not row.get("best"):
        return False
    of_alpha = [rival for rival in summary if rival["alpha"] == row["alpha"]]
    return row["best"] == max(rival.get("best", 0) for rival in of_alpha)


def shown(keys, rows):
    """The keys without those in which no two rows differ."""
    telling = []
    for key in keys:
        if key not in WHERE_THEY_DIFFER or len({row[key] for row in rows} - {None}) > 1:
            telling.append(key)
    return telling


def ranks_text(rows):
    ranks = [row["K"] for row in rows]
    if len(ranks) > 2 and ranks == [*range(ranks[0], ranks[-1] + 1)]:
        return f"{ranks[0]} .. {ranks[-1]}"
    return ", ".join(map(str, ranks))


def accuracy_text(row, name, over=None):
    """Mean, its spread over seeds, splits or trials, and, for what was held out, its interval."""
    text = f"{100 * row[name]:5.1f}"
    if over:
        std = row.get(f"{name}_std_{over}")
        text += " " * 6 if std is None else f" ±{100 * std:4.1f}"
    if name in TESTED:
        low, high = row[f"{name}_interval"]
        text += f" [{100 * low:4.1f}, {100 * high:4.1f}]"
    return text


def difference_text(difference):
    """A paired difference, in points."""
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def key_text(row, key):
    if key != "K":
        return "" if row[key] is None else str(row[key])
    return rank_text(row) + (STAR if row.get("starred") else "")


def rank_text(row):
    name = str(RANK_NAMES.get(row["K"], row["K"]))
    return f"{name}, {row['variant']}" if row.get("variant") not in (None, LORE, ALONE) else name


# ------------------------------------------------------------------------------------------------
# Health of a basis
# ------------------------------------------------------------------------------------------------


def health_table(rows):
    """One row per fitted basis whose row holds its basis_health."""
    notes = [
        "alike: largest |cos| of two columns; used: columns the population uses, in effect,"
        " and one person on average",
        "alike or cosine to head near 1, or used near 1 at a higher rank: a basis that has collapsed",
    ]
    head = ["columns", "alike", "cosine to head", "used", "used by one"]
    bases = [row for row in rows if "columns" in row]
    return table_of(bases, ["K", "alpha", "seed"], head, health_texts, notes)


def health_texts(row):
    alike = "-" if row["alike"] is None else f"{row['alike']:.2f}"
    to_head = "-" if row["to_head"] is None else "{:.2f} .. {:.2f}".format(*row["to_head"])
    return [str(row["columns"]), alike, to_head, f"{row['used']:.1f}", f"{row['used_by_one']:.1f}"]
