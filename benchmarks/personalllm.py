"""PersonalLLM at the paper's size: minutes and peak memory of one population, seen and unseen people, K = 0 .. 5.

    python benchmarks/personalllm.py                  1,000 + 1,000 people, d = 4096; 1 GB of disk
    python benchmarks/personalllm.py --features 512   smaller

9,402 training and 1,000 test prompts with eight responses each, made-up embeddings in bfloat16 and ten made-up reward
models, written to disk as prepare.py writes them; then PersonalLLM/train_basis.py in a process of its own, from files
to pictures. Beside it, the published way: two steps of a loop over people for each rank, timed here and multiplied.
Nothing here says anything about accuracy.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from fit import loop_loss, loop_steps
from measure import ROOT, flags, judge, load_module, run_alone, seconds

from lore.common import start
from lore.splits import Split, save_split

REWARD_MODELS = [*load_module("PersonalLLM/people.py").REWARD_MODELS]
PROMPTS = {"train": 9402, "test": 1000}
RESPONSES = 8
PEOPLE = 1000
PAIRS = 45
RANKS = [1, 2, 3, 4, 5]
STEPS = 1000


def write_prepared(folder, d):
    """data/ as prepare.py leaves it: N(0, 1) embeddings, scores linear in them."""
    import pandas as pd

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(d, len(REWARD_MODELS), generator=generator) / d**0.5
    for side, count in PROMPTS.items():
        table = torch.empty(count * RESPONSES, d, dtype=torch.bfloat16)
        scores = torch.empty(len(table), len(REWARD_MODELS))
        for rows, values in zip(table.split(4096), scores.split(4096)):
            made_up = torch.randn(len(rows), d, generator=generator)
            rows.copy_(made_up)
            values.copy_(made_up @ directions)  # (rows, d) @ (d, M)
        frame = pd.DataFrame(scores.numpy(), columns=REWARD_MODELS)
        frame["prompt"] = np.repeat(np.arange(count), RESPONSES)
        frame["response"] = np.tile(np.arange(RESPONSES), count)
        frame["reply"] = np.arange(len(table))
        head = torch.randn(d, 1, generator=generator)
        save_split(folder / side, Split(table, frame, head, "made up"))


def main():
    parser = flags(__doc__, features=4096, dirichlet=0.1)
    parser.add_argument("--write", type=Path, help="only write the files, to this folder")
    args = parser.parse_args()
    if args.write:
        write_prepared(args.write, args.features)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own, so that its memory is not counted below
        run_alone(__file__, "--write", folder, "--features", args.features)
        disk = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
        paths = ("--data", folder, "--results", folder / "results")
        flags_of_run = (*paths, "--dirichlet_list", args.dirichlet, "--no-mark_best")
        spent, peak = run_alone(ROOT / "PersonalLLM/train_basis.py", *flags_of_run)
    minutes = spent / 60
    told = f"one population, K = 0 .. 5, seen and unseen evaluated: {minutes:.1f} minutes, target 15"
    judge(told, minutes < 15)
    judge(f"peak {peak:.2f} GB for {disk:.2f} GB on disk, target 8", peak < 8)
    # minutes of the joint fits of all ranks as a loop over people, from two steps of each
    users = torch.randn(PEOPLE * PAIRS, args.features).split(PAIRS)
    plain = sum(seconds(loop_steps, loop_loss, users, rank, 2) / 2 for rank in RANKS) * STEPS / 60
    told = f"joint fits alone as a loop over {PEOPLE} people x {PAIRS} pairs, rank by rank"
    print(f"{told}: {plain:.0f} minutes ({plain / minutes:.0f} x)")


if __name__ == "__main__":
    start(main)
