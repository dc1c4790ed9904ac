"""What the accuracies of single users say of people in general: intervals, differences."""

import math
from functools import lru_cache

import numpy as np

from lore.fit.evaluation import LORE, SHARED_OWN, SHUFFLED, TESTED, VARIANTS

RESAMPLES = 2000  # of the users, and of the prompts, for an interval
AT_ONCE = 100  # of them
NUMBERS = 2**24  # users times prompts at a time
INTERVAL = (2.5, 97.5)  # its percentiles
FEW_USERS = 30  # below which an interval is Student's
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
)  # fmt: skip  # 97.5 % quantile of Student's t with 1, 2, .. degrees of freedom
NORMAL = 1.960  # the same of the normal distribution
POWER = NORMAL + 0.842  # standard errors of a difference that is found in 80 % of studies like this
NOISE_DRAWS = 1000  # of what users of equal accuracy would have reached


def quantile(users):
    """Half the width of a 95 % interval of a mean over so many users, in standard errors."""
    return STUDENT[users - 2] if 1 < users < FEW_USERS else NORMAL


def summarise(cells, over="seeds"):
    """One dict per (alpha, K, variant, shots), in the order of the table.

    NAME, for each group of users: mean over repeats of the mean over users;
    NAME_interval: [low, high], 95 % of what it is when the users are drawn anew with all their
    pairs and repeats and, where prompts are shared by users, the prompts as well (bootstrap);
    interval says of what, and how; NAME_std_OVER: over the repeats, where there are several.
    Of tested groups also NAME_log_loss, mean over users of -log P; NAME_calibration_error, over
    pairs; NAME_worst_tenth: [mean accuracy of the worst tenth of the users, the same if all users
    were equally well predicted]; NAME_gain, the difference to Bradley-Terry of the same alpha on the
    same users, NAME_over_shared_own, to "shared + own", and NAME_over_shuffled, to the same fit on shuffled
    labels or to its opposite, whichever is right more often, as coins could have made either: [mean,
    low, high] of paired draws; NAME_detectable, the smallest gain that would be found in 80 % of
    studies like this one.
    """
    rows = {}
    for cell in cells:
        key = (cell.alpha, cell.K, cell.variant, cell.shots)
        rows.setdefault(key, []).append(cell)
    summary = []
    for key in sorted(rows, key=lambda key: VARIANTS.index(key[2])):
        alpha, K, variant, shots = key
        row = {"alpha": alpha, "K": K, "variant": variant}
        if rows[key][0].best is not None:
            row["best"] = sum(cell.best for cell in rows[key])  # in how many of the repeats
        if shots is not None:
            row["shots"] = shots
        row["interval"] = drawn_anew(rows[key])
        for name in rows[key][0].accuracy:
            row |= mean_and_interval(rows[key], name, over)
            row |= likelihoods(rows[key], name)
        row |= compared_rows(rows[key], baseline_of(rows, key, 1, LORE), "gain")
        if variant == LORE and K not in (0, 1):
            row |= compared_rows(rows[key], baseline_of(rows, key, 1, SHARED_OWN), "over_shared_own")
        if variant == LORE:
            shuffled = rows.get((alpha, K, SHUFFLED, shots), [])
            row |= compared_rows(rows[key], shuffled, "over_shuffled", better_side)
        summary.append(row)
    return summary


def baseline_of(rows, key, K, variant):
    """The cells that a row is compared with: of its alpha, or, where one has none, of the first; or none."""
    alpha, _, _, shots = key
    for rival, cells in rows.items():
        same_alpha = rival[0] == alpha or None in (rival[0], alpha)
        if rival[1:] == (K, variant, shots) and same_alpha and rival != key:
            return cells
    return []


# ------------------------------------------------------------------------------------------------
# One row
# ------------------------------------------------------------------------------------------------


def mean_and_interval(repeats, name, over):
    means = mean_accuracies(repeats, name)
    mean = np.mean(means).item()
    low, high = interval(mean, resampled(repeats, name), count_users(repeats, name))
    row = {name: mean, f"{name}_interval": [low, high]}
    if len(repeats) > 1:
        row[f"{name}_std_{over}"] = np.std(means).item()
    return row


def mean_accuracies(repeats, name):
    return [float(cell.accuracy[name].mean()) for cell in repeats]


def interval(mean, draws, users):
    """[low, high]: percentiles of the draws, or Student's where the users are few.

    The bootstrap's variance is (users - 1) / users of what it should be, which matters for few. A
    draw without a pair, by users none of whose prompts were drawn, is NaN and does not count.
    """
    if not 1 < users < FEW_USERS:
        return np.nanpercentile(draws, INTERVAL).tolist()
    error = np.nanstd(draws) * math.sqrt(users / (users - 1))
    half = quantile(users) * error
    return [mean - half, mean + half]


def drawn_anew(repeats):
    """What an interval is over."""
    names = [name for name in TESTED if name in repeats[0].accuracy]
    outcomes = []
    for cell in repeats:
        outcomes += [cell.outcomes[name] for name in names if name in (cell.outcomes or {})]
    over = "users and prompts" if any(map(shares_prompts, outcomes)) else "users"
    few = any(1 < count_users(repeats, name) < FEW_USERS for name in names)
    return f"{over}, Student's t" if few else over


def count_users(repeats, name):
    return len(set().union(*(cell.users[name] for cell in repeats)))


def likelihoods(repeats, name):
    """Log-loss, calibration and the worst tenth, means over repeats; nothing where no pairs are kept."""
    values = {"log_loss": [], "calibration_error": [], "worst_tenth": []}
    for cell in repeats:
        outcomes = (cell.outcomes or {}).get(name)
        if outcomes is None:
            return {}
        values["log_loss"].append(by_user(outcomes.user, outcomes.log_loss).mean())
        values["calibration_error"].append(outcomes.calibration_error)
        if name in TESTED:
            values["worst_tenth"].append(worst_tenth(cell.accuracy[name], outcomes))
    return {
        f"{name}_{what}": np.mean(of_what, axis=0).tolist() for what, of_what in values.items() if of_what
    }


def by_user(user, values):
    """Mean of each user's values: (n,), (n,) -> (C,)"""
    return np.bincount(user, values) / np.bincount(user)


def worst_tenth(accuracy, outcomes):
    """Mean accuracy of the worst tenth of the users, one at least, and what chance alone makes of it:
    the same if all were right with the same probability, on as many pairs as they have; where pairs
    are of choices, which are right or wrong together, if all had drawn from everybody's choices."""
    worst = max(1, len(accuracy) // 10)
    rng = np.random.default_rng(0)
    pairs = np.bincount(outcomes.user)  # (C,)
    if outcomes.choice is None:
        p = np.clip(np.average(accuracy, weights=pairs), 0, 1)
        equal = rng.binomial(pairs, p, (NOISE_DRAWS, len(pairs))) / pairs
    else:
        choices = by_user(outcomes.choice, outcomes.right)  # (choices,), user by user
        first = np.unique(outcomes.choice, return_index=True)[1]
        begin = np.unique(outcomes.user[first], return_index=True)[1]  # each user's first choice
        drawn = rng.choice(choices, (NOISE_DRAWS, len(choices)))
        equal = np.add.reduceat(drawn, begin, axis=1) / np.bincount(outcomes.user[first])
    lowest = np.sort(equal, axis=1)[:, :worst].mean()
    return [float(np.sort(accuracy)[:worst].mean()), float(lowest)]


# ------------------------------------------------------------------------------------------------
# Two rows
# ------------------------------------------------------------------------------------------------


def compared_rows(repeats, baseline, what, turned=None):
    """NAME_WHAT for `seen` and `unseen`, of a gain NAME_detectable too; nothing where the baseline has no
    cells. turned: what to do with these first."""
    row = {}
    for name in TESTED:
        if baseline and name in repeats[0].accuracy:
            cells = [turned(cell, name) for cell in baseline] if turned else baseline
            row[f"{name}_{what}"], error = compared(repeats, cells, name)
            if what == "gain":
                row[f"{name}_detectable"] = POWER * error
    return row


def better_side(cell, name):
    """The cell, or that of the opposite rewards where these are right more often than it is."""
    accuracy = cell.accuracy[name]
    if accuracy.mean() >= 0.5:
        return cell
    outcomes = cell.outcomes
    if outcomes:
        opposite = outcomes[name]._replace(right=1 - outcomes[name].right)
        outcomes = {name: opposite}
    return cell._replace(accuracy={name: 1 - accuracy}, outcomes=outcomes)


def paired_difference(repeats, baseline, name):
    """[mean, low, high] of how much better the cells of one row are than those of another."""
    return compared(repeats, baseline, name)[0]


def compared(repeats, baseline, name):
    """paired_difference over the seeds that both have, and its standard error."""
    seeds = {cell.seed for cell in repeats} & {cell.seed for cell in baseline}
    repeats = [cell for cell in repeats if cell.seed in seeds]
    baseline = [cell for cell in baseline if cell.seed in seeds]
    mean = np.mean(mean_accuracies(repeats, name)) - np.mean(mean_accuracies(baseline, name))
    drawn = resampled(repeats, name) - resampled(baseline, name)
    users = count_users(repeats, name)
    error = np.nanstd(drawn) * math.sqrt(users / max(1, users - 1))
    return [mean.item(), *interval(mean.item(), drawn, users)], float(error)


# ------------------------------------------------------------------------------------------------
# The bootstrap
# ------------------------------------------------------------------------------------------------


def resampled(repeats, name):
    """Mean accuracies, over repeats and then users, when the users of all repeats are drawn anew and,
    where users share prompts, the prompts as well (Owen 2007, the pigeonhole bootstrap): each pair
    counts as often as its user is drawn times how often its prompt is.

    (RESAMPLES,)
    """
    everyone = sorted(set().union(*(cell.users[name] for cell in repeats)))
    number = {user: i for i, user in enumerate(everyone)}
    drawn = drawn_users(len(everyone))
    total = np.zeros(RESAMPLES)
    counted = np.zeros(RESAMPLES)
    for cell in repeats:
        accuracy = accuracies_drawn(cell, name)  # (C, 1) or (C, RESAMPLES)
        has_pairs = np.isfinite(accuracy)
        weight = drawn[:, [number[user] for user in cell.users[name]]].T * has_pairs
        people = weight.sum(0)  # (C, RESAMPLES) -> (RESAMPLES,)
        mean = (weight * np.where(has_pairs, accuracy, 0)).sum(0) / np.maximum(people, 1)
        total += np.where(people > 0, mean, 0)
        counted += people > 0
    return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


def accuracies_drawn(cell, name):
    """Each user's accuracy, (C, 1), or, where prompts are shared, in each draw of them, (C, RESAMPLES).

    NaN where a user has none of the prompts that were drawn.
    """
    outcomes = (cell.outcomes or {}).get(name)
    if name not in TESTED or outcomes is None or not shares_prompts(outcomes):
        return cell.accuracy[name][:, None]
    items, item = np.unique(outcomes.item, return_inverse=True)
    size = max(1, NUMBERS // len(items))  # users at a time
    parts = []
    for first in range(0, len(cell.users[name]), size):
        some = (outcomes.user >= first) & (outcomes.user < first + size)
        pair = outcomes.user[some] - first, item[some]
        pairs = np.zeros((pair[0].max() + 1, len(items)), dtype=np.float32)  # (users, items)
        correct = np.zeros_like(pairs)
        np.add.at(pairs, pair, 1)
        np.add.at(correct, pair, outcomes.right[some])
        with np.errstate(invalid="ignore"):
            shares = [correct @ drawn / (pairs @ drawn) for drawn in drawn_items(len(items))]
        parts.append(np.concatenate(shares, axis=1))
    return np.concatenate(parts)


def shares_prompts(outcomes):
    """Whether a prompt was judged by two users."""
    judged = np.unique(np.stack([outcomes.item, outcomes.user]), axis=1)
    return len(np.unique(judged[0])) < judged.shape[1]


@lru_cache(maxsize=4)
def drawn_users(count):
    """(RESAMPLES, users) how often each of `count` users is drawn; always the same, so that
    differences are paired."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(np.float64)


def drawn_items(count):
    """Yield (items, AT_ONCE): how often each of `count` prompts is drawn; always the same."""
    rng = np.random.default_rng(1)
    for _ in range(RESAMPLES // AT_ONCE):
        drawn = rng.multinomial(count, np.full(count, 1 / count), AT_ONCE)
        yield np.ascontiguousarray(drawn.T, dtype=np.float32)
