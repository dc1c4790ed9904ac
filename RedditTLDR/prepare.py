"""Reddit TL;DR, step 1: from the public comparisons of summaries to embedded ones.

    python RedditTLDR/prepare.py                                    both Hub splits, 8B reward model, one GPU
    python RedditTLDR/prepare.py --source FOLDER --limit 100            upstream batch files, the first 100 of each side
    python RedditTLDR/prepare.py --model ENCODER --pooling mean         no GPU: a text encoder, without a reference head

Reads:  openai/summarize_from_feedback, `comparisons` (train 92,858 rows, validation 86,086), or --source
Writes: data/{train,validation}.safetensors (embeddings and head), data/{train,validation}.parquet (who preferred what)
Cost:   one pass of the model over each distinct post with a summary; 8 kB of disk each for the 8B model. Started
        again, an interrupted run goes on. Several GPUs: torchrun --nproc-per-node=8 RedditTLDR/prepare.py
"""

import hashlib
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import InputError, start
from lore.conversations import exchange, read_json_lines
from lore.embeddings import embed_split
from lore.encoder import encoder_of
from lore.settings import settings

# --------------------------------------------------------------------------------------------------- settings ---
source = "openai/summarize_from_feedback"  # Hub data set, or a folder: a copy of it, or upstream batch files
model = "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"  # Hub reward model, or a local folder
pooling = "last"  # last = last token of a reward model; mean = mean of a text encoder's tokens, no reference head
head = "score"  # where a reward model keeps its reward head: score, v_head, v_head.summary
data = HERE / "data"  # where the embedded comparisons go
device = "auto"  # auto, cpu, cuda, cuda:1
dtype = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU; float32, bfloat16, float16
attention = "sdpa"  # attention of transformers: sdpa, eager; with --no-share also flash_attention_2
batch_tokens = 0  # tokens at a time, fewer where the memory does not suffice; 0 = 16384 on a GPU, 2048 on a CPU
share = (
    True  # compute the beginning that two conversations share once; off for a model that refuses it
)
max_length = (
    0  # tokens; longer conversations lose the oldest part of their prompt; 0 = what the model takes
)
limit = 0  # only the first N comparisons of each side, for a smoke test; 0 = all
# --------------------------------------------------------------------------------------------------------------------


BATCH_FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def upstream_rows(source):
    """Yield (place, row) of every comparison: from batch files if the folder holds any, else through `datasets`."""
    files = sorted(f for f in Path(source).glob("*") if f.name.endswith(BATCH_FILES))
    for file in files:
        for number, row in read_json_lines(file):
            yield f"{file}, line {number}", row
    if not files:
        from datasets import (
            load_dataset,  # runs no loading scripts: the Hub keeps a converted copy, read here
        )

        try:
            sides = {side: f"comparisons/{side}/*.parquet" for side in ("train", "validation")}
            loaded = load_dataset(source, data_files=sides, revision="refs/convert/parquet")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{source} cannot be read: {str(error).strip().splitlines()[0]}"
            ) from error
        for side, rows in loaded.items():
            for number, row in enumerate(rows):
                yield f"{source}, {side} row {number}", row


def read_comparison(place, row):
    """(side, worker, post, winner, loser) of a row, None for news (CNN/DM). InputError: what no row should hold."""
    info, summaries, choice, worker = (
        row.get(key) for key in ("info", "summaries", "choice", "worker")
    )
    if not worker or not isinstance(worker, str):
        raise InputError(f"{place}: no worker")
    if type(choice) is not int or choice not in (0, 1):
        raise InputError(f"{place}: choice is {choice!r}, neither 0 nor 1")
    pair = (
        isinstance(summaries, list)
        and len(summaries) == 2
        and all(isinstance(s, dict) for s in summaries)
    )
    if not isinstance(info, dict) or not pair or not row.get("split"):
        raise InputError(f"{place}: needs info, two summaries and split")
    if info.get("post") is None and info.get("article") is not None:
        return None
    texts = [info.get("post"), summaries[choice].get("text"), summaries[1 - choice].get("text")]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: a post or summary that is not text")
    side = (
        "train" if row["split"] == "train" else "validation"
    )  # upstream calls the latter valid1 and valid2
    return side, worker, *(text.strip() for text in texts)


def clean(rows):
    """Side -> list of comparisons as records for a data frame; prints what is kept and what is left out."""
    sides, dropped = {"train": [], "validation": []}, Counter()
    for comparison in (read_comparison(place, row) for place, row in rows):
        if comparison is None:
            dropped["news (CNN/DM)"] += 1
            continue
        side, worker, post, winner, loser = comparison
        if not (post and winner and loser):
            dropped["empty post or summary"] += 1
        elif winner == loser:
            dropped["two identical summaries"] += 1
        else:
            prompt = hashlib.sha256(post.encode()).hexdigest()[
                :16
            ]  # some rows have no id: a post is known by its text
            pair = {"chosen": exchange(post, winner), "rejected": exchange(post, loser)}
            sides[side].append({"user_id": worker, "prompt": prompt, **pair})
    for side, kept in sides.items():
        workers, posts = (len({row[key] for row in kept}) for key in ("user_id", "prompt"))
        print(f"{side}: {len(kept)} comparisons by {workers} workers on {posts} posts")
    print(
        "left out: " + (", ".join(f"{n} x {reason}" for reason, n in dropped.items()) or "nothing")
    )
    return sides


def main():
    args = settings(globals())
    import pandas as pd

    encoder = encoder_of(args)
    args.data.mkdir(
        parents=True, exist_ok=True
    )  # a folder that cannot be made is better known before the embedding
    sides = clean(upstream_rows(args.source))
    if not any(sides.values()):
        raise InputError(f"{args.source} holds no comparison of Reddit posts")
    for side, kept in sides.items():
        if kept:
            embed_split(args.data / side, pd.DataFrame(kept[: args.limit or None]), encoder)
    print(f"embedded comparisons are in {args.data}")


if __name__ == "__main__":
    start(main)
