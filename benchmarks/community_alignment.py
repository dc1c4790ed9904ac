"""Community Alignment at full size, on a made-up file: minutes and memory of the text, of the sweep, and tokens.

    python benchmarks/community_alignment.py            all three; 5 GB of disk, 16 GB of memory, half an hour
    python benchmarks/community_alignment.py --scale 0.05      a twentieth of the conversations and people

text:   prepare.py without its model: read 90,256 conversations (1.9 GB), keep the English third, and get
        the distinct replies ready to be embedded. Its peak memory is that of a process of its own.
sweep:  train_basis.py's K_list for 941 people with 200 pairs each, d = 4096, by the default solver.
tokens: what a tiny model computes of a sample, against the floor: each distinct path from the first token
        of a conversation to its last, once.
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "CommunityAlignment"))

import prepare
import torch
from embed import WORDS, random_model, tokens_computed

from lore.common import pick_device, start
from lore.fit.comparisons import Comparisons
from lore.text.conversations import distinct, read_csv
from lore.text.encoder import Encoder
from lore.text.packing import split_into_parts
from utils import fit_ridge

CONVERSATIONS = 90_256  # of the file, by more than 3,500 people, in five languages
PEOPLE = 3_500
ENGLISH = 0.34
WRITTEN = 0.31  # share of the first prompts that people wrote themselves
REPLY = 1_850  # characters, so that the file has 1.9 GB
BUSY = 941  # English people with more than 100 pairs
PAIRS = 200  # of each, the median


def made_up_file(path, conversations, count_people):
    """A CSV of the real columns, sizes and traps."""
    rng = random.Random(0)
    pool = " ".join(f"w{rng.randrange(WORDS)}" for _ in range(1_000_000))
    columns = [*prepare.COLUMNS, prepare.BALANCED]

    def text(size):
        begin = rng.randrange(len(pool) - 2 * size)
        return (
            f"{rng.random()} "
            + pool[begin : begin + rng.randrange(size // 2, 2 * size - size // 2)]
        )

    shared = []
    for _ in range(2_500):
        shared.append((text(120), [text(REPLY) for _ in prepare.LETTERS]))
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, restval="EMPTY STRING")
        rows.writeheader()
        for number in range(conversations):
            row = {"conversation_id": number, "annotator_id": rng.randrange(count_people)}
            row["assigned_lang"] = (
                "en" if rng.random() < ENGLISH else rng.choice(["fr", "it", "hi", "pt"])
            )
            row["annotator_country"] = rng.choice(["india", "brazil", "france"])
            own = rng.random() < WRITTEN
            asked = (
                (text(120), [text(REPLY) for _ in prepare.LETTERS]) if own else rng.choice(shared)
            )
            for turn in prepare.TURNS:
                prompt, replies = asked
                row[f"{turn}_turn_prompt"] = prompt
                for letter, reply in zip(prepare.LETTERS, rng.sample(replies, 4)):
                    row[f"{turn}_turn_{letter}"] = reply + prepare.END
                row[f"{turn}_turn_preferred_response"] = rng.choice(prepare.LETTERS)
                if rng.random() > 0.71:  # 2.58 turns on average
                    break
                asked = text(120), [text(REPLY) for _ in prepare.LETTERS]
            rows.writerow(row)


def read_text(path):
    """The part of prepare.py that knows no model, in this process; prints seconds and peak memory as JSON."""
    import pandas as pd

    begin = time.perf_counter()
    args = argparse.Namespace(
        lang="en", balanced=False, min_turns=1, first_turn_only=False, limit=0
    )
    columns = prepare.read(read_csv(path, prepare.COLUMNS), args)
    frame = pd.DataFrame(columns)
    talks = [*frame["chosen"], *frame["rejected"]]
    unique, _ = distinct(talks)
    split_into_parts(unique, True)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB
    print(json.dumps({"seconds": seconds, "peak": peak, "replies": len(unique)}))


def measure_text(scale):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / prepare.FILE
        made_up_file(path, round(scale * CONVERSATIONS), max(10, round(scale * PEOPLE)))
        size = path.stat().st_size / 1e9
        command = [sys.executable, __file__, "--read", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    what = f"text of {size:.2f} GB, {found['replies']} distinct replies"
    reached = found["seconds"] < 300 and found["peak"] < 2
    print(
        f"{what}: {found['seconds']:.0f} s, {found['peak']:.2f} GB at most; 300 s, 2 GB: {verdict(reached)}"
    )


def verdict(reached):
    return "reached" if reached else "MISSED"


def measure_sweep(scale, device, d=4096):
    """Choices of four replies, by people of three kinds."""
    C, turns = round(scale * BUSY), PAIRS // 3
    generator = torch.Generator().manual_seed(0)
    n = C * turns
    table = torch.randn(4 * n, d, generator=generator, dtype=torch.bfloat16)
    tastes = torch.randn(d, 3, generator=generator) / d**0.5
    rewards = (table @ tastes.bfloat16()).float().view(n, 4, 3)
    user = torch.arange(C).repeat_interleave(turns)
    chosen = rewards[torch.arange(n), :, user % 3].argmax(1)
    rejected = (chosen[:, None] + torch.arange(1, 4)) % 4  # (n, 3)
    first = 4 * torch.arange(n)[:, None]
    choice = torch.arange(n).repeat_interleave(3)
    data = Comparisons(
        table, user.repeat_interleave(3), tuple(map(str, range(C))),
        (first + chosen[:, None]).expand(-1, 3).reshape(-1), (first + rejected).reshape(-1),
        prompt=choice // 4, choice=choice,
    )  # fmt: skip
    begin = time.perf_counter()
    fit_ridge(data, [1, 2, 5, 10, 20], device=device)
    seconds = time.perf_counter() - begin
    what = f"sweep of K = 1, 2, 5, 10, 20, {C} people x {3 * turns} pairs, d = {d}, on {device}"
    print(f"{what}: {seconds:.0f} s; 300 s: {verdict(seconds < 300)}")


def measure_tokens(scale):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / prepare.FILE
        made_up_file(path, max(30, round(300 * scale)), 10)
        args = argparse.Namespace(
            lang="all", balanced=False, min_turns=1, first_turn_only=False, limit=100
        )
        columns = prepare.read(read_csv(path, prepare.COLUMNS), args)
        random_model(Path(folder), "tiny")
        encoder = Encoder(folder, "last", torch.device("cpu"))
        unique, _ = distinct(columns["chosen"] + columns["rejected"])
        computed, plain, _ = tokens_computed(encoder, unique)
        paths = set()
        for tokens in encoder.tokeniser.tokenise(unique):
            beginning = 0
            for token in tokens:
                beginning = hash((beginning, token))
                paths.add(beginning)
    print(
        f"tokens computed, over each distinct path once: {computed / len(paths):.3f};"
        f" each reply by itself with all before it: {plain / len(paths):.2f}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the real size")
    parser.add_argument("--only", choices=("tokens", "text", "sweep"), help="one of the three")
    parser.add_argument("--device", default="auto", help="of the sweep")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read_text(args.read)
        return
    if args.only in (None, "tokens"):
        measure_tokens(args.scale)
    if args.only in (None, "text"):
        measure_text(args.scale)
    if args.only in (None, "sweep"):
        measure_sweep(args.scale, pick_device(args.device))


if __name__ == "__main__":
    start(main)
