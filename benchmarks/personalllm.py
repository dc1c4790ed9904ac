"""PersonalLLM at the paper's size: minutes and peak memory of one population, seen and unseen people, K = 0 .. 5.

    python benchmarks/personalllm.py                  1,000 + 1,000 people, d = 4096; 1 GB of disk
    python benchmarks/personalllm.py --features 512   smaller

9,402 training and 1,000 test prompts with eight responses each, made-up embeddings in bfloat16 and ten made-up reward
models, written to disk as prepare.py writes them; then PersonalLLM/train_basis.py in a process of its own, from files
to pictures. Beside it, the published way: two steps of a loop over people for each rank, timed here and multiplied, and
the memory of people x prompts x d in float32, computed. Nothing here says anything about accuracy.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP), str(TOP / "PersonalLLM")]

import numpy as np
import torch
from fit import loop_loss, loop_steps, seconds, verdict

import people
from lore.splits import Split, save_split

TRAIN_BASIS = TOP / "PersonalLLM/train_basis.py"
PROMPTS, RESPONSES, REWARD_MODELS = {"train": 9402, "test": 1000}, 8, len(people.REWARD_MODELS)
PEOPLE, PAIRS, RANKS, STEPS = 1000, 45, [1, 2, 3, 4, 5], 1000


def write_prepared(folder, d):
    """data/ as prepare.py leaves it: N(0, 1) embeddings, scores linear in them."""
    import pandas as pd

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(d, REWARD_MODELS, generator=generator) / d**0.5
    for side, count in PROMPTS.items():
        table = torch.empty(count * RESPONSES, d, dtype=torch.bfloat16)
        scores = torch.empty(len(table), REWARD_MODELS)
        for rows, values in zip(table.split(4096), scores.split(4096)):
            made_up = torch.randn(len(rows), d, generator=generator)
            rows.copy_(made_up)
            values.copy_(made_up @ directions)  # (rows, d) @ (d, M)
        place = {
            "prompt": np.repeat(np.arange(count), RESPONSES),
            "response": np.tile(np.arange(RESPONSES), count),
        }
        frame = pd.DataFrame({**place, "reply": np.arange(len(table))})
        frame = frame.join(pd.DataFrame(scores.numpy(), columns=list(people.REWARD_MODELS)))
        save_split(
            folder / side, Split(table, frame, torch.randn(d, 1, generator=generator), "made up")
        )


def published_minutes(d):
    """Minutes of the joint fits of all ranks as a loop over people, from two steps of each."""
    X = torch.randn(PEOPLE * PAIRS, d)
    users = X.split(PAIRS)
    spent = sum(seconds(loop_steps, loop_loss, users, rank, 2) / 2 for rank in RANKS)
    return spent * STEPS / 60


def run_here(folder, arguments):
    """(minutes, peak GB) of train_basis.py. First of all in a process that holds little: the peak is inherited."""
    flags = [
        "--data",
        folder,
        "--results",
        folder / "results",
        "--dirichlet_list",
        str(arguments.dirichlet),
        "--no-mark_best",
    ]
    begin = time.perf_counter()
    subprocess.run([sys.executable, TRAIN_BASIS, *flags], check=True, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - begin) / 60, resource.getrusage(
        resource.RUSAGE_CHILDREN
    ).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--dirichlet", type=float, default=0.1)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        return write_prepared(arguments.write, arguments.features)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own, so that its memory is not counted below
        subprocess.run(
            [sys.executable, __file__, "--write", folder, f"--features={arguments.features}"],
            check=True,
        )
        disk = sum(os.path.getsize(file) for file in folder.iterdir()) / 1e9
        writer_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        minutes, peak = run_here(folder, arguments)
    if peak <= writer_peak:  # RUSAGE_CHILDREN is the largest of all of them
        print("the peak below is that of writing the files, not of training")
    print(f"one population, K = 0 .. 5, seen and unseen evaluated: {minutes:.1f} minutes,", end=" ")
    print(
        f"target 15: {verdict(minutes < 15)}; peak {peak:.2f} GB for {disk:.2f} GB on disk,",
        end=" ",
    )
    print(f"target 8: {verdict(peak < 8)}")
    plain = published_minutes(arguments.features)
    held = 4 * arguments.features * (PEOPLE * PROMPTS["train"] + 2 * PEOPLE * PROMPTS["test"]) / 1e9
    print(
        f"joint fits alone as a loop over people, rank by rank: {plain:.0f} minutes ({plain / minutes:.0f} x)",
        end=" ",
    )
    print(f"for {PEOPLE} people x {PAIRS} pairs; people x prompts x d in float32: {held:.0f} GB")


if __name__ == "__main__":
    main()
