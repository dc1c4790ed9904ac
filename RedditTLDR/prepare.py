"""Reddit TL;DR, step 1: from the public comparisons of summaries to embedded ones.

    python RedditTLDR/prepare.py                                    both Hub splits, 8B model, one GPU
    python RedditTLDR/prepare.py --source FOLDER --limit 100            batch files, 100 of each side
    python RedditTLDR/prepare.py --model ENCODER --pooling mean         no GPU: a text encoder, no head

Reads:  openai/summarize_from_feedback, `comparisons` (train 92,858 rows, validation 86,086), or
        --source
Writes: data/{train,validation}.safetensors (embeddings and head), data/{train,validation}.parquet
        (who preferred what)
Cost:   one pass of the model over each distinct post with a summary; 8 kB of disk each for the 8B
        model. Started again, an interrupted run goes on.
        Several GPUs: torchrun --nproc-per-node=8 RedditTLDR/prepare.py
"""

import hashlib
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import require, start
from lore.settings import settings
from lore.text import encoder_settings
from lore.text.conversations import data_files, exchange, fetch_rows, read_rows
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of
from lore.upstream_values import as_list, content_key, whole_number

# ------------------------------------------------------------------------------- settings ---
source = "openai/summarize_from_feedback"  # Hub data set, or a folder: its copy, or batch files
data = HERE / "data"  # where the embedded comparisons go
limit = 0  # only the first N comparisons of each side, for a smoke test; 0 = all
# -------------------------------------------------------------------------------------------
# The model and how it is used: lore/text/encoder_settings.py, flags of this script as well.

BATCH_FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
CONVERTED = "refs/convert/parquet"  # the Hub's own copy: no loading script is run


def upstream_rows(source):
    """(file and line, row) of every comparison: of a folder's batch files or parquet files, or the Hub's."""
    folder = Path(source)
    if not folder.is_dir():
        sides = {side: f"comparisons/{side}/*.parquet" for side in ("train", "validation")}
        return fetch_rows(source, data_files=sides, revision=CONVERTED)
    files = data_files(file for file in folder.glob("*") if file.name.endswith(BATCH_FILES))
    if not files:
        files = data_files(folder.glob("comparisons/*/*.parquet"))
    require(files, f"{source} holds no batch files (.json, .jsonl) and no comparisons/*/")
    return chain.from_iterable(map(read_rows, files))


def read_comparison(place, row):
    """(side, worker, post, winner, loser) of a row, None for news (CNN/DM). InputError: bad schema."""
    info = row.get("info")
    summaries = as_list(row.get("summaries")) or []
    worker = row.get("worker")
    choice = whole_number(row.get("choice"))
    require(worker and isinstance(worker, str), f"{place}: no worker")
    require(choice in (0, 1), f"{place}: choice is {row.get('choice')!r}, neither 0 nor 1")
    two = [type(summary) for summary in summaries] == [dict, dict]
    whole = isinstance(info, dict) and two and row.get("split")
    require(whole, f"{place}: needs info, two summaries and split")
    if info.get("post") is None and info.get("article") is not None:
        return None
    texts = [info.get("post"), summaries[choice].get("text"), summaries[1 - choice].get("text")]
    text = all(isinstance(text, str) for text in texts)
    require(text, f"{place}: a post or summary that is not text")
    # upstream calls the other side valid1 and valid2
    side = "train" if row["split"] == "train" else "validation"
    return side, worker, *(text.strip() for text in texts)


def clean(rows):
    """Side -> comparisons as records for a data frame; prints what is kept and what is left out."""
    sides = {"train": [], "validation": []}
    left_out = Counter()
    judgements = set()
    for place, row in rows:
        comparison = read_comparison(place, row)
        if comparison is None:
            left_out["news (CNN/DM)"] += 1
            continue
        side, worker, post, winner, loser = comparison
        if not (post and winner and loser):
            left_out["empty post or summary"] += 1
        elif winner == loser:
            left_out["two identical summaries"] += 1
        elif (key := content_key({**row, "batch": None})) in judgements:
            left_out["the same judgement again"] += 1  # upstream has batches under two names
        else:
            judgements.add(key)
            # some rows have no id: a post is known by its text
            prompt = hashlib.sha256(post.encode()).hexdigest()[:16]
            pair = {"chosen": exchange(post, winner), "rejected": exchange(post, loser)}
            sides[side].append({"user_id": worker, "prompt": prompt, **pair})
    for side, records in sides.items():
        workers = {record["user_id"] for record in records}
        posts = {record["prompt"] for record in records}
        print(f"{side}: {len(records)} comparisons by {len(workers)} workers on {len(posts)} posts")
    reasons = ", ".join(f"{count} x {reason}" for reason, count in left_out.items())
    print(f"left out: {reasons or 'nothing'}")
    return sides


def main():
    args = settings(globals(), encoder_settings)
    import pandas as pd

    encoder = encoder_of(args)
    # a folder that cannot be made is better known before the embedding
    args.data.mkdir(parents=True, exist_ok=True)
    sides = clean(upstream_rows(args.source))
    require(any(sides.values()), f"{args.source} holds no comparison of Reddit posts")
    for side, records in sides.items():
        if records:
            embed_split(args.data / side, pd.DataFrame(records[: args.limit or None]), encoder)
    print(f"embedded comparisons are in {args.data}")


if __name__ == "__main__":
    start(main)
