"""Words and texts made up, and rows of people: what the data sets, OwnData/ and apply/ are tried on."""

import gzip
import json
import random

from conftest import ROOT, call_script

WORDS = [
    "the", "cat", "sat", "on", "mat", "and", "dog", "lay", "beside", "it", "I", "met", "a", "friend", "nothing",
]  # fmt: skip


def text(rng, least, most=None):
    """So many words, or a random number of them in between."""
    return " ".join(rng.choices(WORDS, k=least if most is None else rng.randint(least, most)))


def comparisons(users=6, prompts=12, seed=0):
    """Everybody compares two replies to each prompt; people with an even number like the longer one."""
    rng = random.Random(seed)
    rows = []
    for p in range(prompts):
        prompt = f"{text(rng, 5)} {p}?"
        short, long = text(rng, 3), text(rng, 9)
        for user in range(users):
            likes_long = (user % 2 == 0) != (rng.random() < 0.1)
            pair = (long, short) if likes_long else (short, long)
            rows.append({"user_id": user, "prompt": prompt, "chosen": pair[0], "rejected": pair[1]})
    return rows


def write(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(path):
    """A JSON file, as results/*.json."""
    return json.loads(path.read_text())


def messages(row):
    """The same row as TRL and rewardbench have it: message lists, the prompt within them."""
    ask = {"role": "user", "content": row["prompt"]}
    sides = {}
    for side in ("chosen", "rejected"):
        sides[side] = [ask, {"role": "assistant", "content": row[side]}]
    return {"user_id": row["user_id"], **sides}


def prepare(folder, rows, model, *flags):
    """data/ of OwnData/prepare.py: (exit status, stdout, stderr)."""
    source = write(folder / "own.jsonl.gz", rows)
    script = ROOT / "OwnData/prepare.py"
    common = ("--source", source, "--model", model, "--data", folder / "data")
    return call_script(script, *common, *flags)
