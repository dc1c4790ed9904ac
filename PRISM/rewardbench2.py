"""RewardBench 2: its rows, checked; rewards to be scored; the official score, and how sure it is."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from lore.common import require, told_as
from lore.fit.basis import load_basis
from lore.text.conversations import fetch_rows, read_rows
from lore.upstream_values import as_list, content_key, whole_number

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
DRAWS = 500  # of the rows, for an interval
INTERVAL = (2.5, 97.5)  # its percentiles
MEAN = "mean mixture"  # name of the reward of the people seen, taken together
UNUSABLE = (ValueError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError)


# ------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------


def read_bench(source, subset, limit):
    """Checked rows of one subset, or of all. InputError: a row that RewardBench 2 does not have."""
    wanted = [name for name in SUBSETS if not subset or name.lower() == subset.lower()]
    require(wanted, f"subset = {subset}: use one of {', '.join(SUBSETS)}")
    folder = f"{source} is a folder; name the JSON-lines or parquet file in it"
    require(not Path(source).is_dir(), folder)
    here = Path(source).is_file()
    rows = []
    keys = set()
    tied = set()
    again = 0
    for place, fields in read_rows(source) if here else fetch_rows(source, split="test"):
        row = checked_row(place, fields)
        key = content_key(row)
        if key in keys:
            again += 1
            continue
        keys.add(key)
        if row["subset"] == "Ties":
            twice = f"{row['id']} stands here for the second time, with other replies"
            require(row["id"] not in tied, f"{place}: {twice}")
            tied.add(row["id"])
        if row["subset"] in wanted:
            rows.append(row)
    if again:
        print(f"left out: {again} rows that stand there a second time")
    require(rows, f"{source} holds no row" + (f" of {subset}" if subset else ""))
    return rows[: limit or None]


def checked_row(place, row):
    """id, subset, prompt, chosen and rejected replies of a row, and how many are correct."""
    subset = row.get("subset")
    number = row.get("num_correct")
    chosen = as_list(row.get("chosen"))
    rejected = as_list(row.get("rejected"))
    require(subset in SUBSETS, f"{place}: subset {subset!r} is none of {', '.join(SUBSETS)}")
    texts = [row.get("prompt"), *(chosen or [None]), *(rejected or [None])]
    needed = "needs a prompt, chosen and rejected replies, all of them text"
    require(all(isinstance(text, str) for text in texts), f"{place}: {needed}")
    counted = f"num_correct is {number!r}, chosen replies: {len(chosen)}"
    require(whole_number(number) == len(chosen), f"{place}: {counted}")
    name = str(row.get("id"))
    kind, _, pair = name.partition(":")
    tied = kind in ("ref", "tied") and pair.isdigit()
    named = f"the id of a Ties row is ref:N or tied:N, not {row.get('id')!r}"
    require(subset != "Ties" or tied, f"{place}: {named}")
    correct = f"{len(chosen)} correct replies; tied rows have several, all others one"
    require((len(chosen) > 1) == (kind == "tied"), f"{place}: {correct}")
    replies = {"num_correct": len(chosen), "chosen": chosen, "rejected": rejected}
    return {"id": name, "subset": subset, "prompt": row["prompt"], **replies}


# ------------------------------------------------------------------------------------------------
# Rewards
# ------------------------------------------------------------------------------------------------


def load_heads(path, num_features, user_ids):
    """({name: (d,) reward}, model of its embeddings): columns, mean mixture, people.

    user_ids: whose own reward is wanted; ["all"] = everybody's. InputError: an unusable file.
    """
    kind = Path(path).suffix
    require(kind in (".safetensors", ".pt", ".npy"), f"{path}: a head is a .safetensors, .pt or .npy file")
    if kind != ".safetensors":
        require(not user_ids, "--users: only a .safetensors basis of train_basis.py knows people")
        V = load_plain(path, num_features)
        require(V.isfinite().all(), f"{path} holds NaN or infinity")
        widths = f"rewards of width {len(V)}, but the embeddings have {num_features}"
        require(len(V) == num_features, f"{path}: {widths}: not the same model")
        return columns(V), ""
    basis = load_basis(path, num_features)
    users = basis.everybody if user_ids == ["all"] else user_ids
    heads = columns(basis.V) | {MEAN: basis.V @ basis.W.mean(0)}  # (d, K) @ (K,)
    return heads | dict(zip(users, basis.rewards(users).T)), basis.model


def columns(V):
    return {f"column {k}": V[:, k] for k in range(V.shape[1])}


def load_plain(path, num_features):
    """V (d, K) of a .pt or .npy file that holds nothing else, or a dictionary with it. No code is run."""
    plain = f"{path} does not hold a plain tensor V of shape (d, K)"
    with told_as(f"{path} cannot be read", OSError), told_as(plain, *UNUSABLE):
        if Path(path).suffix == ".pt":
            V = torch.load(path, map_location="cpu", weights_only=True)
        else:
            V = np.load(path, allow_pickle=False)
        V = torch.as_tensor(V["V"] if isinstance(V, dict) else V).detach()
    require(V.ndim in (1, 2) and V.numel() and not V.is_complex(), f"{plain}, but {tuple(V.shape)} {V.dtype}")
    if V.shape == (1, num_features):
        return V.float().T  # as score.weight of a model
    return V.float().reshape(len(V), -1)  # (d,) or (d, K) -> (d, K)


# ------------------------------------------------------------------------------------------------
# Scores
# ------------------------------------------------------------------------------------------------


# A subset's score is a sum of weighted means over its rows, of Ties over its pairs of rows: of
# (weight, values (n, H), there (n, H)) each weight * sum of values / how many are there.


def best_of_rows(rows):
    """1 / #{replies with the highest score} if the correct one, the first, has it, else 0.

    [(id, correct, (m, H))] -> parts
    """
    credit = []
    for *_, scores in rows:
        highest = scores == scores.max(axis=0)
        credit.append(highest[0] / highest.sum(axis=0))
    credit = np.stack(credit)
    return [(1.0, credit, np.ones_like(credit))]


def ties(rows):
    """Parts of the official score of the Ties subset. [(id, correct, (m, H))] -> parts

    spread D: of the correct scores of a tied row; margin: worst correct score minus best incorrect
    one. A row whose partner is missing counts for the two accuracies alone.
    """
    margin = {"ref": {}, "tied": {}}  # of a kind, by the number of the pair: (H,)
    spread = {}
    for row_id, correct, scores in rows:
        kind, number = row_id.split(":")
        right, wrong = scores[:correct], scores[correct:]
        margin[kind][number] = right.min(axis=0) - wrong.max(axis=0)
        if kind == "tied":
            spread[number] = right.max(axis=0) - right.min(axis=0)
    numbers = sorted(margin["ref"].keys() | margin["tied"].keys())
    missing = np.full(scores.shape[1], np.nan)
    by_number = [margin["tied"], margin["ref"], spread]
    tied, ref, D = (np.stack([of.get(number, missing) for number in numbers]) for of in by_number)
    worse = np.minimum(tied, ref)  # (pairs, H); NaN, which is above nothing, where one of them is missing
    pair = np.isfinite(worse)
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(worse / D - 1))
    return [
        (0.30, tied > 0, np.isfinite(tied)),  # accuracy
        (0.30, ref > 0, np.isfinite(ref)),
        (0.20, pair & (tied > D), pair),
        (0.20, worse > D, pair),
        (0.01, closeness, pair),
    ]


def subset_scores(rows, scores, draws=0):
    """{subset: (1 + draws, H)} of rows, each with its (m, H) scores; `Overall`, their mean, where all six are there.

    First of the rows as they are, then as those of each subset are drawn anew (bootstrap), the two of a Ties pair
    together. NaN: Ties without any pair.
    """
    rng = np.random.default_rng(0)
    by_subset = {}
    for name in SUBSETS:
        scored = []
        for row, values in zip(rows, scores):
            if row["subset"] == name:
                scored.append((row["id"], row["num_correct"], values))
        if scored:
            parts = ties(scored) if name == "Ties" else best_of_rows(scored)
            n = len(parts[0][1])
            counts = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), draws)])
            by_subset[name] = 0.0
            with np.errstate(invalid="ignore"):  # none are there
                for weight, values, there in parts:
                    by_subset[name] += weight * (counts @ values) / (counts @ there)
    if len(by_subset) == len(SUBSETS):
        by_subset["Overall"] = sum(by_subset.values()) / len(SUBSETS)
    return by_subset


def print_lonely(rows):
    """Say how many Ties rows stand alone."""
    numbers = Counter(row["id"].split(":")[1] for row in rows if row["subset"] == "Ties")
    alone = sum(count == 1 for count in numbers.values())
    if alone:
        without = "" if alone < len(numbers) else "; without any pair there is no score"
        print(f"{alone} of {numbers.total()} Ties rows lack their ref or tied partner", end=" ")
        print(f"and count for accuracy alone{without}")


def interval(values):
    """95 % interval over rows: (1 + draws, H) of subset_scores -> (H, 2); NaN where all draws lack a Ties pair."""
    usable = values[1:][np.isfinite(values[1:]).all(axis=1)]
    return np.percentile(usable, INTERVAL, axis=0).T if len(usable) else np.full((values.shape[1], 2), np.nan)


def over_first(values):
    """[mean, low, high] of how far subset_scores lie above the first reward's, for each of the others."""
    points = values[:, 1:] - values[:, :1]
    return np.column_stack([points[0], interval(points)]).tolist()
