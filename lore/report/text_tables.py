"""Tables of text: what was found, in aligned columns."""

from lore.fit.evaluation import ALONE, LORE, SHARED_OWN, TESTED
from lore.fit.mixtures import EVERYBODY
from lore.fit.ridge import DEVIATION_SPREADS, PERSONAL_SPREADS

GROUP_NAMES = {
    "train": "train",
    "seen": "seen",
    "few_shot_train": "few-shot train",
    "unseen": "unseen",
}
OF_A_RANK = (
    "K",
    "best",
    "_gain",
    "_detectable",
    "_over_shared_own",
)  # not among a row's own numbers
RANK_NAMES = {0: "0 reference", 1: "1 Bradley-Terry", "best": "best possible", "alone": ALONE}


def print_run_table(summary, over="seeds"):
    """One line per (alpha, K) and baseline, in percent; what a fit does not beat is called out.

    Ranks of the same numbers, such as those at which the ridge solver found nothing personal, are
    one line.
    """
    several = any(f"unseen_std_{over}" in row for row in summary)
    rows = merged(summary)
    print_table(rows, ["K", "alpha"], GROUP_NAMES, over if several else None)
    print_legend(rows, f" ± std over {over}" if several else "")
    print_likelihoods(rows)
    print_not_beaten(rows, "over_shuffled", "no better than shuffled labels")
    print_not_beaten(rows, "over_shared_own", f'no better than "{SHARED_OWN}"')


def print_few_shot_table(rows):
    """One line per (alpha, K, shots)."""
    print_table(rows, ["K", "alpha", "shots"], ("few_shot_train", "unseen"), "trials")
    print_legend(rows, " ± std over trials")
    print_likelihoods(rows, ("K", "alpha", "shots"))


def print_legend(rows, spread):
    gain = "; last column: paired difference" if any("unseen_gain" in row for row in rows) else ""
    over = rows[0]["interval"]
    print(f"accuracy in percent, mean over users{spread} [95 % interval over {over}]{gain}")
    if any(row.get("marked") for row in rows):
        print("*: the rank that held-out training prompts speak for; test pairs had no say")
    least = []
    fits = [row for row in rows if row.get("variant") == LORE and row["K"] not in (0, "best")]
    for name in TESTED:
        found = [row[f"{name}_detectable"] for row in fits if f"{name}_detectable" in row]
        if found:
            least.append(f"{name} {100 * max(found):.1f}")
    if least:
        text = "smallest difference to Bradley-Terry that any rank could have shown (80 % power)"
        print(f"{text}: {', '.join(least)} points")


def print_likelihoods(rows, keys=("K", "alpha")):
    """What lies behind the accuracies of the tested groups."""
    rows = [row for row in rows if "unseen_log_loss" in row]
    if not rows:
        return
    if not has_alphas(rows):
        keys = [key for key in keys if key != "alpha"]
    names = [name for name in TESTED if f"{name}_log_loss" in rows[0]]
    lines = [[*keys]]
    for name in names:
        lines[0] += [f"{name}: log-loss", "off", "worst tenth (chance)"]
    for row in rows:
        line = [key_text(row, key) for key in keys]
        for name in names:
            worst, chance = row[f"{name}_worst_tenth"]
            if row["K"] in (0, "best"):  # rewards on a scale of their own
                line += ["-", "-"]
            else:
                off = 100 * row[f"{name}_calibration_error"]
                line += [f"{row[f'{name}_log_loss']:.3f}", f"{off:.1f}"]
            line.append(f"{100 * worst:.1f} ({100 * chance:.1f})")
        lines.append(line)
    print_aligned(lines)
    print(
        "log-loss: mean over users of -log P, 0.693 = a coin; off: expected calibration error, points"
    )
    print("worst tenth: their accuracy (and what it would be if all users were alike)")


def print_not_beaten(rows, what, text):
    """One line that names the rows whose paired difference is not told from none, or is below it."""
    no_better = []
    for row in rows:
        for name in TESTED:
            difference = row.get(f"{name}_{what}")
            if difference and difference[1] <= 0:
                of_alpha = f", alpha {row['alpha']:g}" if has_alphas(rows) else ""
                where = f"K = {rank_text(row)}{of_alpha}, {name}"
                no_better.append(f"{where}: {difference_text(difference)}")
    if no_better:
        print(f"{text}: {'; '.join(no_better)}")


def print_both_sides(cells):
    """How many of the tested items the basis was fitted to through other people."""
    found = [cell.both_sides for cell in cells if cell.both_sides]
    parts = []
    for name in TESTED:
        counts = sorted({tuple(both_sides[name]) for both_sides in found if name in both_sides})
        parts += [f"{both} of {items} ({name})" for both, items in counts[-1:]]
    if parts:
        print(f"tested items on which others were trained: {', '.join(parts)}")


def merged(summary):
    """The rows, those of one variant and alpha with the same numbers as one row of several ranks.

    Their K is the text of their ranks; Bradley-Terry keeps a row of its own, the others are "as 1".
    """
    rows = {}
    for row in summary:
        numbers = [str(row[name]) for name in sorted(row) if not name.endswith(OF_A_RANK)]
        ranked = isinstance(row["K"], int) and row["K"] > 0
        key = " ".join(numbers) if ranked else id(row)
        rows.setdefault(key, []).append(marked(row, summary))
    result = []
    for same in rows.values():
        of_any = {"marked": any(row["marked"] for row in same)}
        if same[0]["K"] == 1 and same[0]["variant"] == LORE and len(same) > 1:
            result.append(same[0])  # it stands for itself, and the others are as it
            as_it = f"{ranks_text(same[1:])} as 1"
            result.append(same[1] | {"K": as_it, "marked": False})
        elif len(same) > 1:
            result.append(same[-1] | {"K": ranks_text(same)} | of_any)
        else:
            result += same
    return result


def marked(row, summary):
    """The row with what it says of held-out prompts: whether most repeats had this rank as the best."""
    counts = [
        other["best"] for other in summary if other["alpha"] == row["alpha"] and "best" in other
    ]
    return row | {"marked": bool(row.get("best")) and row["best"] == max(counts)}


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
    return rank_text(row) + (" *" if row.get("marked") else "")


def rank_text(row):
    name = str(RANK_NAMES.get(row["K"], row["K"]))
    return f"{name}, {row['variant']}" if row.get("variant") not in (None, LORE, ALONE) else name


def print_choices(cells):
    """What the ridge solver chose, and the held-out gains that it chose by; nothing for others."""
    by_seed = {}
    for cell in cells:
        if cell.variant == LORE and cell.fit is not None and cell.fit.choice:
            by_seed.setdefault(cell.seed, {})[cell.K] = cell.fit.choice
    for seed, choices in by_seed.items():
        common = next(iter(choices.values()))  # what all ranks share
        path = []
        for s, loss in zip(common["common_spreads"], common["common_held_out_loss"]):
            path.append(f"{s:.2g}: {loss:.4f}")
        print(f"ridge, seed {seed}: held-out loss of Bradley-Terry {', '.join(path)}")
        print(f"chosen s = {common['common_spread']:.2g}")
        lines = [["K", *(f"p = {p:g}" for p in PERSONAL_SPREADS), "chosen", "as new", "prior"]]
        own = [["K", *(f"o = {o:g}" for o in DEVIATION_SPREADS), "chosen"]]
        for K, choice in choices.items():
            if "gain" in choice:
                lines.append([str(K), *map(gain_text, choice["gain"]), *chosen_texts(choice)])
            if K == 1 or choice.get("personal_spread"):
                chosen = f"o = {choice['deviation_spread']:g}"
                own.append([str(K), *map(gain_text, choice["deviation_gain"]), chosen])
        if len(lines) > 1:
            print("what more rewards than that one gain in log P of a held-out pair, ± std. error:")
            print_aligned(lines)
            print("and what something of one's own beside them adds to that:")
            print_aligned(own)


def chosen_texts(choice):
    """Spread, gain on seen people posing as new, strength of the prior."""
    if not choice["personal_spread"]:
        return ["1 and own" if choice["deviation_spread"] else "1 Bradley-Terry", "", ""]
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
