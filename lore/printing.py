"""Tables of text: what was found, in aligned columns."""

from lore.evaluation import ALONE, LORE
from lore.mixtures import EVERYBODY
from lore.ridge import PERSONAL_SPREADS

GROUP_NAMES = {
    "train": "train",
    "seen": "seen",
    "few_shot_train": "few-shot train",
    "unseen": "unseen",
}
RANK_NAMES = {0: "0 reference", 1: "1 Bradley-Terry", "best": "best possible", "alone": ALONE}


def print_run_table(summary, over="seeds"):
    """One line per (alpha, K) and baseline, in percent; what shuffled labels reach as well.

    Ranks of the same numbers, such as those at which the ridge solver found nothing personal, are
    one line.
    """
    several = any(f"unseen_std_{over}" in row for row in summary)
    rows = merged(summary)
    print_table(rows, ["K", "alpha"], GROUP_NAMES, over if several else None)
    print_legend(summary, f" ± std over {over}" if several else "")
    no_better = []
    for row in rows:
        for name in ("seen", "unseen"):
            difference = row.get(f"{name}_over_shuffled")
            if difference and difference[1] <= 0:
                of_alpha = f", alpha {row['alpha']:g}" if has_alphas(summary) else ""
                where = f"K = {key_text(row, 'K')}{of_alpha}, {name}"
                no_better.append(f"{where}: {difference_text(difference)}")
    if no_better:
        print(f"no better than shuffled labels: {'; '.join(no_better)}")


def print_few_shot_table(rows):
    """One line per (alpha, K, shots)."""
    print_table(rows, ["K", "alpha", "shots"], ("few_shot_train", "unseen"), "trials")
    print_legend(rows, " ± std over trials")


def print_legend(rows, spread):
    gain = "; last column: paired difference" if any("unseen_gain" in row for row in rows) else ""
    print(f"accuracy in percent, mean over users{spread} [95 % interval over users]{gain}")


def merged(summary):
    """The rows, those of one variant and alpha with the same numbers as one row of several ranks.

    Their K is the text of their ranks; Bradley-Terry keeps a row of its own, the others are "as 1".
    """
    rows = {}
    for row in summary:
        numbers = {name: row[name] for name in row if name != "K" and "_gain" not in name}
        ranked = isinstance(row["K"], int) and row["K"] > 0
        key = repr(sorted(numbers.items())) if ranked else id(row)
        rows.setdefault(key, []).append(row)
    result = []
    for same in rows.values():
        if same[0]["K"] == 1 and same[0]["model"] == LORE and len(same) > 1:
            result.append(same[0])  # it stands for itself, and the others are as it
            as_it = f"{ranks_text(same[1:])} as 1"
            result.append(same[1] | {"K": as_it})
        elif len(same) > 1:
            result.append(same[-1] | {"K": ranks_text(same)})
        else:
            result += same
    return result


def ranks_text(rows):
    ranks = [row["K"] for row in rows]
    if len(ranks) > 2 and ranks == [*range(ranks[0], ranks[-1] + 1)]:
        return f"{ranks[0]} .. {ranks[-1]}"
    return ", ".join(map(str, ranks))


def print_table(rows, keys, names, over):
    """The keys (alpha only where there are several), each accuracy, and what personal adds."""
    if not has_alphas(rows):
        keys = [key for key in keys if key != "alpha"]
    has_gain = any("unseen_gain" in row for row in rows)
    head = [*keys, *(GROUP_NAMES[name] for name in names)]
    lines = [[*head, "over Bradley-Terry, unseen"] if has_gain else head]
    for row in rows:
        line = [key_text(row, key) for key in keys]
        for name in names:
            line.append(accuracy_text(row, name, over))
        if has_gain:
            line.append(difference_text(row["unseen_gain"]) if "unseen_gain" in row else "")
        lines.append(line)
    print_aligned(lines)


def has_alphas(rows):
    return len({row["alpha"] for row in rows} - {None}) > 1


def accuracy_text(row, name, over):
    """Mean, its spread over seeds, splits or trials, and, for what was held out, its interval."""
    text = f"{100 * row[name]:5.1f}"
    if over:
        std = row.get(f"{name}_std_{over}")
        text += " " * 6 if std is None else f" ±{100 * std:4.1f}"
    if name in ("seen", "unseen"):
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
    name = str(RANK_NAMES.get(row["K"], row["K"]))
    return f"{name}, {row['model']}" if row.get("model") not in (None, LORE, ALONE) else name


def print_choices(cells):
    """What the ridge solver chose, and the held-out gains that it chose by; nothing for others."""
    by_seed = {}
    for cell in cells:
        if cell.variant == LORE and cell.fit is not None and cell.fit.choice:
            by_seed.setdefault(cell.seed, {})[cell.K] = cell.fit.choice
    for seed, choices in by_seed.items():
        lines = [["K", *(f"p = {p:g}" for p in PERSONAL_SPREADS), "chosen", "as new", "prior"]]
        for K, choice in choices.items():
            if "gain" in choice:
                lines.append([str(K), *map(gain_text, choice["gain"]), *chosen_texts(choice)])
        common = next(iter(choices.values()))  # what all ranks share
        path = []
        for s, loss in zip(common["common_spreads"], common["common_held_out_loss"]):
            path.append(f"{s:.2g}: {loss:.4f}")
        print(f"ridge, seed {seed}: held-out loss of Bradley-Terry {', '.join(path)}")
        print(f"chosen s = {common['common_spread']:.2g}")
        if len(lines) > 1:
            print("what more rewards than that one gain in log P of a held-out pair, ± std. error:")
            print_aligned(lines)


def chosen_texts(choice):
    """Spread, gain on seen people posing as new, strength of the prior."""
    if not choice["personal_spread"]:
        return ["1 Bradley-Terry", "", ""]
    strength = choice["strength"]
    prior = "everybody's" if float(strength) == EVERYBODY else f"{strength} pairs"
    as_new = gain_text(choice["gain_as_new"][strength])
    return [f"p = {choice['personal_spread']:g}", as_new, prior]


def gain_text(gain):
    mean, error = gain
    return f"{mean:+.4f} ±{error:.4f}"


def print_health(rows):
    """One line per fitted basis whose row holds its basis_health."""
    keys = ["K"]
    for key in ("alpha", "seed"):
        if len({row[key] for row in rows} - {None}) > 1:
            keys.append(key)
    lines = [[*keys, "columns", "alike", "cosine to head", "used", "used by one"]]
    for row in rows:
        if "columns" in row:
            alike = "-" if row["alike"] is None else f"{row['alike']:.2f}"
            head = "-" if row["to_head"] is None else "{:.2f} .. {:.2f}".format(*row["to_head"])
            used = [f"{row['used']:.1f}", f"{row['used_by_one']:.1f}"]
            key = [key_text(row, name) for name in keys]
            lines.append([*key, str(row["columns"]), alike, head, *used])
    print_aligned(lines)
    print(
        "alike: largest |cos| of two columns; used: columns the population uses, in effect,"
        " and one person on average"
    )
    print(
        "alike or cosine to head near 1, or used near 1 at a higher rank: a basis that has collapsed"
    )


def print_aligned(lines):
    """Lists of texts as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        print("  ".join(cells))
