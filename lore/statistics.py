"""What the accuracies of single users say of people in general: intervals, differences."""

from functools import lru_cache

import numpy as np

from lore.evaluation import LORE, SHUFFLED, VARIANTS

RESAMPLES = 2000  # of the users, for an interval
INTERVAL = (2.5, 97.5)  # its percentiles


def summarise(cells, over="seeds"):
    """One dict per (alpha, K, variant, shots), in the order of the table.

    NAME, for each group of users: mean over repeats of the mean over users;
    NAME_interval: [low, high], 95 % of what it is when the users are drawn anew with all their
    pairs and repeats (bootstrap); NAME_std_OVER: over the repeats, where there are several.
    `seen` and `unseen` also have NAME_gain, the difference to Bradley-Terry of the same alpha on
    the same users, and NAME_over_shuffled, to the same fit on shuffled labels or to its opposite,
    whichever is right more often, as coins could have made either: [mean, low, high] of paired draws.
    """
    rows = {}
    for cell in cells:
        key = (cell.alpha, cell.K, cell.variant, cell.shots)
        rows.setdefault(key, []).append(cell)
    summary = []
    for key in sorted(rows, key=lambda key: VARIANTS.index(key[2])):
        alpha, K, variant, shots = key
        row = {"alpha": alpha, "K": K, "model": variant}
        if shots is not None:
            row["shots"] = shots
        for name in rows[key][0].accuracy:
            row |= mean_and_interval(rows[key], name, over)
        bradley_terry = bradley_terry_of(key, rows)
        if bradley_terry:
            row |= differences(rows[key], rows[bradley_terry], "gain")
        shuffled = (alpha, K, SHUFFLED, shots)
        if variant == LORE and shuffled in rows:
            row |= differences(rows[key], rows[shuffled], "over_shuffled", better_side)
        summary.append(row)
    return summary


def bradley_terry_of(key, rows):
    """The row that a row is compared with: of its alpha, or, where it has none, of the first alpha."""
    alpha, _, _, shots = key
    for other in rows:
        if other[1:] == (1, LORE, shots) and alpha in (None, other[0]) and other != key:
            return other
    return None


def mean_and_interval(repeats, name, over):
    means = mean_accuracies(repeats, name)
    interval = np.percentile(resampled(repeats, name), INTERVAL).tolist()
    row = {name: np.mean(means).item(), f"{name}_interval": interval}
    if len(repeats) > 1:
        row[f"{name}_std_{over}"] = np.std(means).item()
    return row


def mean_accuracies(repeats, name):
    return [float(cell.accuracy[name].mean()) for cell in repeats]


def differences(repeats, others, what, turned=None):
    """NAME_WHAT for `seen` and `unseen`; turned: what to do with the other cells first."""
    row = {}
    for name in ("seen", "unseen"):
        if name in repeats[0].accuracy:
            theirs = [turned(cell, name) for cell in others] if turned else others
            row[f"{name}_{what}"] = paired_difference(repeats, theirs, name)
    return row


def better_side(cell, name):
    """The cell, or that of the opposite rewards where these are right more often than it is."""
    accuracy = cell.accuracy[name]
    return cell._replace(accuracy={name: accuracy if accuracy.mean() >= 0.5 else 1 - accuracy})


def paired_difference(repeats, others, name):
    """[mean, low, high] of how much better the cells of one row are than those of another, over
    the seeds that both have."""
    seeds = {cell.seed for cell in repeats} & {cell.seed for cell in others}
    ours = [cell for cell in repeats if cell.seed in seeds]
    theirs = [cell for cell in others if cell.seed in seeds]
    mean = np.mean(mean_accuracies(ours, name)) - np.mean(mean_accuracies(theirs, name))
    drawn = resampled(ours, name) - resampled(theirs, name)
    return [mean.item(), *np.percentile(drawn, INTERVAL).tolist()]


def resampled(repeats, name):
    """Mean accuracies, over repeats and then users, when the users of all repeats are drawn anew.

    (RESAMPLES,)
    """
    everyone = sorted(set().union(*(cell.users[name] for cell in repeats)))
    place = {user: i for i, user in enumerate(everyone)}
    present = np.zeros((len(repeats), len(everyone)))
    total = np.zeros((len(repeats), len(everyone)))
    for r, cell in enumerate(repeats):
        own = [place[user] for user in cell.users[name]]
        present[r, own] = 1
        total[r, own] = cell.accuracy[name]
    drawn = drawn_users(len(everyone))
    counted = drawn @ present.T  # (draws, users) @ (users, repeats)
    means = drawn @ total.T / np.maximum(counted, 1)  # (draws, users) @ (users, repeats)
    return np.nanmean(np.where(counted > 0, means, np.nan), axis=1)


@lru_cache(maxsize=4)
def drawn_users(count):
    """(RESAMPLES, users) how often each of `count` users is drawn; always the same, so that
    differences are paired."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(np.float64)
