"""RewardBench 2: its rows, checked; rewards to be scored; the official score, and how sure it is."""

import pickle
from pathlib import Path

import numpy as np
import torch

from lore.common import InputError, require
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
    if kind == ".safetensors":
        return heads_of_basis(load_basis(path, num_features), user_ids)
    require(not user_ids, "--users: only a .safetensors basis of train_basis.py knows people")
    require(kind in (".pt", ".npy"), f"{path}: a head is a .safetensors, .pt or .npy file")
    V = load_plain(path, num_features)
    require(V.isfinite().all(), f"{path} holds NaN or infinity")
    widths = f"rewards of width {len(V)}, but the embeddings have {num_features}"
    require(len(V) == num_features, f"{path}: {widths}: not the same model")
    return columns(V), ""


def heads_of_basis(basis, user_ids):
    heads = columns(basis.V)
    heads[MEAN] = basis.V @ basis.W.mean(0)  # (d, K) @ (K,)
    users = basis.everybody if user_ids == ["all"] else user_ids
    heads |= dict(zip(users, basis.rewards(users).T))
    return heads, basis.model


def columns(V):
    return {f"column {k}": V[:, k] for k in range(V.shape[1])}


def load_plain(path, num_features):
    """V (d, K) of a .pt or .npy file that holds nothing else, or a dictionary with it. No code is run."""
    try:
        if Path(path).suffix == ".pt":
            V = torch.load(path, map_location="cpu", weights_only=True)
            V = V["V"] if isinstance(V, dict) else V
        else:
            V = torch.from_numpy(np.load(path, allow_pickle=False))
        numbers = isinstance(V, torch.Tensor) and V.ndim in (1, 2) and not V.is_complex()
        if not numbers or not V.numel():
            raise ValueError("it is something else")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except UNUSABLE as error:
        reason = (str(error).strip() or "an empty file").splitlines()[0]
        raise InputError(f"{path} does not hold a plain tensor V of shape (d, K): {reason}") from error
    V = V.detach().float()
    if V.shape == (1, num_features):
        return V.T  # as score.weight of a model
    return V.reshape(len(V), -1)  # (d,) or (d, K) -> (d, K)


# ------------------------------------------------------------------------------------------------
# Scores
# ------------------------------------------------------------------------------------------------


def best_of_row(scores):
    """1 / #{replies with the highest score} if the correct one, the first, has it, else 0.

    (m, H) -> (H,)
    """
    highest = scores == scores.max(axis=0)
    return highest[0] / highest.sum(axis=0)


def ties(rows):
    """Official score of the Ties subset, and its number of pairs. [(id, correct, (m, H))] -> (H,), int

    spread D: of the correct scores of a tied row; margin: worst correct score minus best incorrect
    one. A row whose partner is missing counts for the two accuracies alone; NaN without any pair.
    """
    margin = {"ref": {}, "tied": {}}  # of a kind, by the number of the pair: (H,)
    spread = {}
    for row_id, correct, scores in rows:
        kind, number = row_id.split(":")
        right, wrong = scores[:correct], scores[correct:]
        margin[kind][number] = right.min(axis=0) - wrong.max(axis=0)
        if kind == "tied":
            spread[number] = right.max(axis=0) - right.min(axis=0)
    pairs = sorted(margin["ref"].keys() & margin["tied"].keys())
    if not pairs:
        return np.full(rows[0][2].shape[1], np.nan), 0
    score = 0.0
    for kind in ("tied", "ref"):  # accuracy
        score = score + 0.30 * np.mean(np.stack([*margin[kind].values()]) > 0, axis=0)
    tied = np.stack([margin["tied"][number] for number in pairs])  # (pairs, H)
    ref = np.stack([margin["ref"][number] for number in pairs])
    D = np.stack([spread[number] for number in pairs])
    worse = np.minimum(tied, ref)
    score = score + 0.20 * (tied > D).mean(0) + 0.20 * (worse > D).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(worse / D - 1))
    return score + 0.01 * closeness.mean(0), len(pairs)


def of_subset(name, rows, scores):
    """[(id, correct, (m, H))] of a subset's rows."""
    scored = []
    for row, values in zip(rows, scores):
        if row["subset"] == name:
            scored.append((row["id"], row["num_correct"], values))
    return scored


def subset_scores(rows, scores):
    """{subset: (H,)} of rows, each with its (m, H) scores; says which Ties rows stand alone."""
    by_subset = {}
    for name in SUBSETS:
        scored = of_subset(name, rows, scores)
        if scored and name != "Ties":
            by_subset[name] = np.mean([best_of_row(values) for *_, values in scored], axis=0)
        elif scored:
            by_subset[name], pairs = ties(scored)
            alone = len(scored) - 2 * pairs
            if alone:
                without = "" if pairs else "; without any pair there is no score"
                print(f"{alone} of {len(scored)} Ties rows lack their ref or tied partner", end=" ")
                print(f"and count for accuracy alone{without}")
    return by_subset


def drawn_scores(rows, scores):
    """{subset: (DRAWS, H)} when the rows of each subset are drawn anew (bootstrap), the two rows of a Ties
    pair together; `Overall` where all six are there. rows, each with its (m, H) scores."""
    rng = np.random.default_rng(0)
    drawn = {}
    for name in SUBSETS:
        scored = of_subset(name, rows, scores)
        if scored and name == "Ties":
            drawn[name] = ties_drawn(scored, rng)
        elif scored:
            right = np.stack([best_of_row(values) for *_, values in scored])  # (rows, H)
            counts = rng.multinomial(len(right), np.full(len(right), 1 / len(right)), DRAWS)
            drawn[name] = counts @ right / len(right)  # (draws, rows) @ (rows, H)
    if len(drawn) == len(SUBSETS):
        drawn["Overall"] = sum(drawn.values()) / len(SUBSETS)
    return drawn


def score_intervals(drawn):
    """{subset: (H, 2)}, 95 % over rows; nothing of a subset whose draws all lack a Ties pair."""
    intervals = {}
    for name, values in drawn.items():
        if np.isfinite(values).any():
            intervals[name] = np.nanpercentile(values, INTERVAL, axis=0).T
    return intervals


def over_first(drawn, overall):
    """[mean, low, high] of how far the mean of the six subsets lies above the first reward's, for each of
    the others; 95 % interval over rows. drawn: of drawn_scores; overall: (H,) of all rows."""
    above = drawn["Overall"][:, 1:] - drawn["Overall"][:, :1]
    mean = overall[1:] - overall[0]
    low, high = np.nanpercentile(above, INTERVAL, axis=0)  # NaN: a draw without a Ties pair
    return np.stack([mean, low, high], axis=1).tolist()


def ties_drawn(rows, rng):
    """Ties scores of numbers drawn anew, each with the rows that it has. (DRAWS, H)"""
    by_number = {}
    for row in rows:
        by_number.setdefault(row[0].split(":")[1], []).append(row)
    of_numbers = [*by_number.values()]
    drawn = []
    for _ in range(DRAWS):
        sample = []
        for new, number in enumerate(rng.integers(0, len(of_numbers), len(of_numbers))):
            for row_id, correct, values in of_numbers[number]:
                sample.append((f"{row_id.split(':')[0]}:{new}", correct, values))
        drawn.append(ties(sample)[0])
    return np.stack(drawn)
