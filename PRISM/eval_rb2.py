"""PRISM, step 5: has a learned basis kept its general quality? Its rewards on RewardBench 2, scored the official way.

    python PRISM/eval_rb2.py                                                    the reward model's own head alone
    python PRISM/eval_rb2.py --rm_head PRISM/results/train_basis_K5_alpha0_seed0.safetensors --users user682 user173
    python PRISM/eval_rb2.py --subset ties --limit 10 --source FILE.jsonl       the first ten Ties rows of a local file

Reads:  allenai/reward-bench-2 (1,865 rows) or --source; a basis of train_basis.py, or a .pt or .npy with V (d, K)
Writes: results/eval_rb2*.csv, .json; data/rb2*.{safetensors,parquet}, so that other heads need no model
Cost:   one pass of the model over the prompts, each with its replies, on a GPU; scoring any number of heads: a second.
"""

import pickle
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np
import torch

from lore.basis import load_basis
from lore.common import InputError, start, written_whole
from lore.conversations import exchange, read_json_lines
from lore.embeddings import embed_split
from lore.encoder import encoder_of
from lore.printing import print_aligned
from lore.report import save_results
from lore.settings import settings
from lore.tables import TABLE_ROWS, load_split

# --------------------------------------------------------------------------------------------------- settings ---
rm_head = ""  # a basis of train_basis.py (.safetensors), or .pt or .npy with V (d, K); empty = reference head alone
users = []  # ids of people in that basis whose own reward is scored too; all = everybody
source = "allenai/reward-bench-2"  # Hub data set, or a JSON-lines file with its columns
subset = ""  # Factuality, Precise IF, Math, Safety, Focus or Ties; empty = all six
limit = 0  # only the first N rows (of the subset), for a smoke test; 0 = all
model = "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"  # the model whose embeddings the basis was learned on
pooling = "last"  # last = last token of a reward model; mean = mean of a text encoder's tokens, no reference head
head = "score"  # where a reward model keeps its reward head: score, v_head, v_head.summary
data = HERE / "data"  # where the embedded replies go
results = HERE / "results"  # table
device = "auto"  # auto, cpu, cuda, cuda:1
dtype = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU; float32, bfloat16, float16
attention = "sdpa"  # attention of transformers: sdpa, eager; with --no-share also flash_attention_2
batch_tokens = 0  # tokens at a time, fewer where the memory does not suffice; 0 = 16384 on a GPU, 2048 on a CPU
share = True  # compute a prompt once for all its replies; off for a model that refuses it
max_length = (
    0  # tokens; longer conversations lose the oldest part of their prompt; 0 = what the model takes
)
# --------------------------------------------------------------------------------------------------------------------

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
REFERENCE, MEAN = "reference head", "mean mixture"
SHOWN = 60  # rewards in the printed table
OVERFITTED = 5  # points below the reference head that are called so


def read_rows(source, subset, limit):
    """Checked rows of one subset, or of all. InputError: a row that RewardBench 2 does not have, an unknown subset."""
    wanted = {name.lower(): name for name in SUBSETS}
    if subset and subset.lower() not in wanted:
        raise InputError(f"subset = {subset}: use one of {', '.join(SUBSETS)}")
    if Path(source).is_dir():
        raise InputError(f"{source} is a folder; name the JSON-lines file in it")
    if Path(source).is_file():
        found = ((f"{source}, line {number}", row) for number, row in read_json_lines(source))
    else:
        from datasets import load_dataset

        try:
            loaded = load_dataset(source, split="test")
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{source} is no file here and cannot be fetched: {reason}") from error
        found = ((f"{source}, row {number}", row) for number, row in enumerate(loaded))
    rows, known = [], set()
    for place, row in found:
        chosen, rejected = (
            row.get(kind) if isinstance(row.get(kind), list) else []
            for kind in ("chosen", "rejected")
        )
        texts = [row.get("prompt"), *(chosen or [None]), *(rejected or [None])]
        if row.get("subset") not in SUBSETS:
            raise InputError(
                f"{place}: subset {row.get('subset')!r} is none of {', '.join(SUBSETS)}"
            )
        if not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"{place}: needs a prompt, chosen and rejected replies, all of them text"
            )
        if row.get("num_correct") != len(row["chosen"]):
            raise InputError(
                f"{place}: num_correct is {row.get('num_correct')!r}, chosen replies: {len(row['chosen'])}"
            )
        kind, _, number = str(row.get("id")).partition(":")
        if row["subset"] == "Ties" and not (kind in ("ref", "tied") and number.isdigit()):
            raise InputError(
                f"{place}: the id of a Ties row is ref:N or tied:N, not {row.get('id')!r}"
            )
        if (len(row["chosen"]) > 1) != (kind == "tied"):
            raise InputError(
                f"{place}: {len(row['chosen'])} correct replies; tied rows have several, all others one"
            )
        if row["subset"] == "Ties" and row["id"] in known:
            raise InputError(f"{place}: {row['id']} stands here for the second time")
        known.add(row["id"])
        if not subset or row["subset"] == wanted[subset.lower()]:
            rows.append(row)
    if not rows:
        raise InputError(f"{source} holds no row" + (f" of {subset}" if subset else ""))
    return rows[: limit or None]


def load_heads(path, num_features, user_names):
    """({name: (d,) reward}, model of its embeddings): columns, mean mixture, people. InputError: unusable file."""
    if Path(path).suffix == ".safetensors":
        basis = load_basis(path, num_features)
        V, W = basis.V, torch.cat([basis.W, basis.W_unseen])  # (d, K), (C + C', K)
        names = (*basis.user_ids, *basis.unseen_ids)
        chosen = names if user_names == ["all"] else user_names
        if unknown := [user for user in chosen if user not in names]:
            raise InputError(
                f"{path} has no user {unknown[0]}; it has {len(names)}, such as {names[0]}"
            )
        heads = {f"column {k}": V[:, k] for k in range(V.shape[1])} | {
            MEAN: V @ basis.W.mean(0)
        }  # (d, K) @ (K,)
        return heads | {user: V @ W[names.index(user)] for user in chosen}, basis.model
    if user_names:
        raise InputError("--users: only a .safetensors basis of train_basis.py knows people")
    if Path(path).suffix not in (".pt", ".npy"):
        raise InputError(f"{path}: a head is a .safetensors, .pt or .npy file")
    try:
        if Path(path).suffix == ".pt":
            V = torch.load(path, map_location="cpu", weights_only=True)
            V = V["V"] if isinstance(V, dict) else V
        else:
            V = torch.from_numpy(np.load(path, allow_pickle=False))
        if (
            not isinstance(V, torch.Tensor)
            or V.ndim not in (1, 2)
            or V.is_complex()
            or not V.numel()
        ):
            raise ValueError("it is something else")
        V = V.detach().float()
        V = (
            V.T if V.shape == (1, num_features) else V.reshape(len(V), -1)
        )  # (1, d), (d,), (d, K) -> (d, K)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error).strip() or "an empty file").splitlines()[0]
        raise InputError(
            f"{path} does not hold a plain tensor V of shape (d, K): {reason}"
        ) from error
    if not V.isfinite().all():
        raise InputError(f"{path} holds NaN or infinity")
    if len(V) != num_features:
        raise InputError(
            f"{path}: rewards of width {len(V)}, but the embeddings have {num_features}: not the same model"
        )
    return {f"column {k}": V[:, k] for k in range(V.shape[1])}, ""


def embedded_width(path):
    """d of a table that is there already, so that scoring other heads needs no model; None where there is none."""
    if not Path(f"{path}.safetensors").exists():
        return None
    return load_split(path, "python PRISM/eval_rb2.py", columns=["reply"]).table.shape[1]


def best_of_row(scores):
    """1 / #{replies with the highest score} if the correct one, the first, has it, else 0. (m, H) -> (H,)"""
    highest = scores == scores.max(axis=0)
    return highest[0] / highest.sum(axis=0)


def ties(rows):
    """Official score of the Ties subset, and the number of pairs behind it. [(id, correct, (m, H))] -> (H,), int

    D: spread of the correct scores of a tied row; margin: worst correct score minus best incorrect one. A row whose
    partner is missing counts for the two accuracies alone; NaN where there is no complete pair.
    """
    found = {"ref": {}, "tied": {}}  # number -> (margin, spread)
    for row_id, correct, scores in rows:
        kind, number = row_id.split(":")
        right, wrong = scores[:correct], scores[correct:]
        found[kind][number] = (
            right.min(axis=0) - wrong.max(axis=0),
            right.max(axis=0) - right.min(axis=0),
        )
    pairs = sorted(found["ref"].keys() & found["tied"].keys())
    if not pairs:
        return np.full(rows[0][2].shape[1], np.nan), 0
    accuracy = {
        kind: np.mean([margin > 0 for margin, _ in stats.values()], 0)
        for kind, stats in found.items()
    }
    tied, ref, D = (
        np.stack([found[kind][n][i] for n in pairs])
        for kind, i in (("tied", 0), ("ref", 0), ("tied", 1))
    )
    worse = np.minimum(tied, ref)
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(worse / D - 1))
    parts = (
        accuracy["tied"],
        accuracy["ref"],
        (tied > D).mean(0),
        (worse > D).mean(0),
        closeness.mean(0),
    )
    return sum(weight * part for weight, part in zip((0.30, 0.30, 0.20, 0.20, 0.01), parts)), len(
        pairs
    )


def score(rows, scores):
    """{subset: (H,)} of rows, each with its (m, H) scores; says which Ties rows stand alone."""
    by_subset = {name: [] for name in SUBSETS}
    for row, values in zip(rows, scores):
        by_subset[row["subset"]].append((row["id"], row["num_correct"], values))
    tied = by_subset.pop("Ties")
    result = {
        name: np.mean([best_of_row(s) for *_, s in found], 0)
        for name, found in by_subset.items()
        if found
    }
    if tied:
        result["Ties"], pairs = ties(tied)
        if len(tied) > 2 * pairs:
            print(
                f"{len(tied) - 2 * pairs} of {len(tied)} Ties rows lack their ref or tied partner",
                end=" ",
            )
            print(
                "and count for accuracy alone"
                + ("" if pairs else "; without any pair there is no score")
            )
    return result


def compare(table):
    """Say how far the learned rewards lie from the reference head."""
    if REFERENCE not in table.index or len(table) == 1 or table.isna().all(axis=None):
        return
    points = 100 * (table.mean(axis=1) - table.mean(axis=1)[REFERENCE]).drop(REFERENCE)
    parts = [f"{MEAN} {points[MEAN]:+.1f}"] if MEAN in points else []
    for name, some in points.groupby(points.index.str.startswith("column ")):
        some = some.drop(MEAN, errors="ignore")
        if len(some):
            parts.append(
                f"{'columns' if name else 'people'} {some.min():+.1f} .. {some.max():+.1f}"
            )
    print(f"points above the {REFERENCE}, mean of the subsets: {', '.join(parts)}")
    if points.get(MEAN, points.max()) < -OVERFITTED:
        print(
            f"more than {OVERFITTED} points below it: fitting these people has cost general quality (overfitting)"
        )


def main():
    args = settings(globals())
    import pandas as pd

    rows = read_rows(args.source, args.subset, args.limit)
    encoder = encoder_of(args)
    selected = f"_{args.subset.lower().replace(' ', '_')}" if args.subset else ""
    selected += f"_first{args.limit}" if args.limit else ""
    path, output = args.data / f"rb2{selected}", args.results / f"eval_rb2{selected}"
    heads, learned_on = {}, ""
    if args.rm_head:
        heads, learned_on = load_heads(
            args.rm_head, embedded_width(path) or encoder.num_features, args.users
        )
    elif args.users:
        raise InputError("--users: whose? name their basis with --rm_head")
    if not heads and args.pooling == "mean":
        raise InputError(
            "nothing to score: a text encoder has no head of its own; give one with --rm_head"
        )
    args.results.mkdir(parents=True, exist_ok=True)
    args.data.mkdir(parents=True, exist_ok=True)
    texts = [
        (i, row["prompt"], text)
        for i, row in enumerate(rows)
        for text in row["chosen"] + row["rejected"]
    ]
    frame = pd.DataFrame(
        {"row": [i for i, *_ in texts], "reply": [exchange(*pair) for _, *pair in texts]}
    )
    embed_split(path, frame, encoder, columns=["reply"])
    split = load_split(path, "python PRISM/eval_rb2.py", columns=["reply"])

    if split.head is not None:
        heads = {REFERENCE: split.head[:, 0], **heads}
    if learned_on and learned_on != split.model:
        print(
            f"warning: the basis was learned on {learned_on}, these are embeddings of {split.model}"
        )
    H = torch.stack(list(heads.values()), dim=1).float()  # (d, H)
    R = (
        torch.cat([block.float() @ H for block in split.table.split(TABLE_ROWS)]).double().numpy()
    )  # (rows, d) @ (d, H)
    replies_of = split.frame.groupby("row")["reply"]
    by_subset = score(rows, [R[numbers.to_numpy()] for _, numbers in replies_of])  # each (m, H)

    complete = len(by_subset) == len(SUBSETS) and not np.isnan(by_subset["Ties"]).any()
    table = pd.DataFrame(by_subset, index=list(heads))
    table["Overall"] = table.mean(axis=1) if complete else np.nan
    with written_whole(f"{output}.csv") as file:
        table.to_csv(file, index_label="reward")
    save_results(output, [{"reward": name, **row.dropna()} for name, row in table.iterrows()], args)
    shown = table.iloc[:SHOWN]
    text = lambda value: "-" if np.isnan(value) else f"{100 * value:.1f}"
    print_aligned(
        [
            ["reward", *table],
            *([name, *map(text, row)] for name, row in zip(shown.index, shown.to_numpy())),
        ]
    )
    print(
        f"{len(rows)} rows; percent; Overall is the mean of the six subsets"
        + ("" if complete else ", not all here")
    )
    if len(shown) < len(table):
        print(f"and {len(table) - len(shown)} more in the CSV")
    compare(table.drop(columns="Overall"))
    print(f"results are in {output}.csv and .json")


if __name__ == "__main__":
    start(main)
