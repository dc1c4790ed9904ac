"""Community Alignment at full size, on a made-up file: minutes and memory of the text, and of the sweep.

    python benchmarks/community_alignment.py            both; 2 GB of disk, 16 GB of memory, half an hour
    python benchmarks/community_alignment.py --scale 0.05      a twentieth of the conversations and people

text:   prepare.py without its model: read 90,256 conversations (1.9 GB), keep the English third, and get
        the distinct replies ready to be embedded. Its peak memory is that of a process of its own.
sweep:  train_basis.py's K_list for 941 people with 200 pairs each, d = 4096, by the default solver.
"""

import csv
import random
import tempfile
from pathlib import Path

import torch
from measure import flags, judge, load_module, run_alone, seconds

from lore.common import pick_device, start
from lore.fit.comparisons import Comparisons
from lore.fit.ridge import fit_ridge
from lore.settings import defaults_of
from lore.text.conversations import distinct, read_csv
from lore.text.packing import split_into_parts

prepare = load_module("CommunityAlignment/prepare.py")
public_file = load_module("CommunityAlignment/public_file.py")

CONVERSATIONS = 90_256  # of the file, by more than 3,500 people, in five languages
PEOPLE = 3_500
ENGLISH = 0.34
WRITTEN = 0.31  # share of the first prompts that people wrote themselves
GOES_ON = 0.71  # after each turn: 2.58 turns on average
QUESTION = 120  # characters
REPLY = 1_850  # characters, so that the file has 1.9 GB
BUSY = 941  # English people with more than 100 pairs
PAIRS = 200  # of each, the median
RANKS = [1, 2, 5, 10, 20]


class Author:
    """Made-up prompts and replies, deterministic."""

    def __init__(self):
        self.rng = random.Random(0)
        self.pool = " ".join(f"w{self.rng.randrange(8000)}" for _ in range(1_000_000))

    def text(self, size):
        begin = self.rng.randrange(len(self.pool) - 2 * size)
        unlike = self.rng.random()  # no two texts are the same
        end = begin + self.rng.randrange(size // 2, 2 * size - size // 2)
        return f"{unlike} {self.pool[begin:end]}"

    def turn(self):
        """A prompt with its replies."""
        return self.text(QUESTION), [self.text(REPLY) for _ in public_file.LETTERS]


def made_up_file(path, conversations, count_people):
    """A CSV of the real columns, sizes and traps."""
    author = Author()
    rng = author.rng
    shared = [author.turn() for _ in range(2_500)]
    columns = [*public_file.COLUMNS, public_file.BALANCED]
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, restval="EMPTY STRING")
        rows.writeheader()
        for number in range(conversations):
            row = {"conversation_id": number, "annotator_id": rng.randrange(count_people)}
            english = rng.random() < ENGLISH
            row["assigned_lang"] = "en" if english else rng.choice(["fr", "it", "hi", "pt"])
            row["annotator_country"] = rng.choice(["india", "brazil", "france"])
            asked = author.turn() if rng.random() < WRITTEN else rng.choice(shared)
            for turn in public_file.TURNS:
                prompt, replies = asked
                row[f"{turn}_turn_prompt"] = prompt
                for letter, reply in zip(public_file.LETTERS, rng.sample(replies, 4)):
                    row[f"{turn}_turn_{letter}"] = reply + public_file.END
                row[f"{turn}_turn_preferred_response"] = rng.choice(public_file.LETTERS)
                if rng.random() > GOES_ON:
                    break
                asked = author.turn()
            rows.writerow(row)


def read_as_prepare(path):
    """What prepare.py does before it loads its model."""
    columns = prepare.read(read_csv(path, public_file.COLUMNS), defaults_of(prepare))
    unique, _ = distinct([*columns["chosen"], *columns["rejected"]])
    split_into_parts(unique, True)
    print(f"{len(unique)} distinct replies")


def measure_text(scale):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / prepare.FILE
        made_up_file(path, round(scale * CONVERSATIONS), max(10, round(scale * PEOPLE)))
        size = path.stat().st_size / 1e9
        spent, peak = run_alone(__file__, "--read", path)
    told = f"text of {size:.2f} GB: {spent:.0f} s, {peak:.2f} GB at most; 300 s, 2 GB"
    judge(told, spent < 300 and peak < 2)


def choices_of_four(C, turns, d):
    """Comparisons of people of three kinds, who choose one of four replies in each turn."""
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
    return Comparisons(
        table, user.repeat_interleave(3), tuple(map(str, range(C))),
        (first + chosen[:, None]).expand(-1, 3).reshape(-1), (first + rejected).reshape(-1),
        prompt=choice // 4, choice=choice,
    )  # fmt: skip


def measure_sweep(scale, device, d=4096):
    data = choices_of_four(round(scale * BUSY), PAIRS // 3, d)
    spent = seconds(lambda: fit_ridge(data, RANKS, device=device))
    size = f"{len(data.user_ids)} people x {PAIRS // 3 * 3} pairs, d = {d}, on {device}"
    judge(f"sweep of K = {RANKS}, {size}: {spent:.0f} s; 300 s", spent < 300)


def main():
    parser = flags(__doc__, scale=1.0, device="auto")
    parser.add_argument("--only", choices=("text", "sweep"), help="one of the two")
    parser.add_argument("--read", help="only read this file as prepare.py does, to be measured")
    args = parser.parse_args()
    if args.read:
        read_as_prepare(args.read)
        return
    if args.only != "sweep":
        measure_text(args.scale)
    if args.only != "text":
        measure_sweep(args.scale, pick_device(args.device))


if __name__ == "__main__":
    start(main)
