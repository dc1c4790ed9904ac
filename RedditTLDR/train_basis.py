"""Reddit TL;DR, step 2: learn a basis of rewards from seen workers, adapt it to unseen ones, sweep the rank.

    python RedditTLDR/train_basis.py --synthetic        planted workers, nothing to download or prepare
    python RedditTLDR/train_basis.py                    the prepared comparisons
    python RedditTLDR/train_basis.py --solver ridge --baselines
    python RedditTLDR/train_basis.py --repeats 20 --resplit --train_posts 0.5

Reads:  data/{train,validation}.{safetensors,parquet}, made by prepare.py
Writes: results/train_basis.json, .png, and V, W, worker ids of each rank as .safetensors (planted: *_synthetic.*)
Cost:   seconds on a CPU for planted workers; no GPU needed otherwise either, and no model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np

from lore.common import InputError, pick_device, start
from lore.comparisons import Comparisons, Groups
from lore.evaluation import best_cell
from lore.planted import planted_population
from lore.report import report
from lore.settings import alphas_of, repeats_of, settings
from lore.tables import load_split
from utils import run

# --------------------------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 2, 3, 4, 5, 6]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
min_comparisons = 50  # workers with fewer on either side are left out
max_train = 150  # training comparisons of a seen worker
max_few_shot = 50  # few-shot comparisons of an unseen worker
train_posts = (
    0.0  # where only one side is prepared: share of its posts to train on; 0 = expect both sides
)
solver = "adam"  # adam = as published, for num_iterations steps; ridge = chooses its own penalties on held-out prompts
num_iterations = 1000  # Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its workers, posts and comparisons anew; the spread is then over splits
baselines = False  # also one mixture for all, another's mixture, each user alone, and fits to shuffled labels
seed = (
    0  # of the choice of workers and comparisons, of the start of the fits, of the planted workers
)
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted workers instead of the prepared data
planted_workers = 40  # of --synthetic: as many as in the paper
planted_pairs = 200  # of --synthetic: comparisons of each worker on each side
planted_features = 64  # of --synthetic: width of the embeddings
planted_directions = 4  # of --synthetic: hidden rewards that workers mix
planted_concentration = (
    0.2  # of --synthetic: Dirichlet parameter of the mixtures; small = different workers
)
planted_accuracy = (
    0.9  # of --synthetic: how often who knows the true rewards is right; the rest is noise
)
# --------------------------------------------------------------------------------------------------------------------

PREPARE = "python RedditTLDR/prepare.py"


def load_sides(folder, train_posts, seed):
    """(train, test) Splits: the two prepared sides, or the posts of the only one dealt out to both."""
    found = [side for side in ("train", "validation") if (folder / f"{side}.safetensors").exists()]
    if len(found) != 1:
        train, test = (load_split(folder / side, PREPARE) for side in ("train", "validation"))
        if train.model != test.model:
            raise InputError(
                f"{folder}: train was embedded by {train.model}, validation by {test.model}"
            )
        if train_posts:
            raise InputError(
                f"--train_posts {train_posts} is for one side only, but {folder} holds both"
            )
        return train, test
    if not 0 < train_posts < 1:
        raise InputError(
            f"{folder} holds only the {found[0]} side; a --train_posts between 0 and 1 splits it by post"
        )
    split = load_split(folder / found[0], PREPARE)
    posts = np.random.default_rng(seed).permutation(sorted(split.frame["prompt"].unique()))
    to_train = split.frame["prompt"].isin(posts[: round(train_posts * len(posts))])
    return split._replace(frame=split.frame[to_train]), split._replace(frame=split.frame[~to_train])


def split_workers(train, test, min_comparisons, max_train, max_few_shot, seed):
    """Half of the workers seen, half unseen -> Groups. At most max_train and max_few_shot pairs; all test pairs."""
    counts = [split.frame["user_id"].value_counts() for split in (train, test)]
    enough = sorted(set.intersection(*(set(c.index[c >= min_comparisons]) for c in counts)))
    if len(enough) < 2:
        raise InputError(
            f"{len(enough)} workers have {min_comparisons} comparisons on each side; lower --min_comparisons"
        )
    workers = np.random.default_rng(seed).permutation(enough).tolist()
    seen, unseen = sorted(workers[: len(workers) // 2]), sorted(workers[len(workers) // 2 :])
    shuffled = train.frame.sample(frac=1, random_state=seed).groupby("user_id")
    both = set(train.frame["prompt"]) & set(test.frame["prompt"])
    groups = Groups(
        Comparisons.from_frame(train.table, shuffled.head(max_train), seen, prompt="prompt"),
        Comparisons.from_frame(test.table, test.frame, seen),
        Comparisons.from_frame(train.table, shuffled.head(max_few_shot), unseen),
        Comparisons.from_frame(test.table, test.frame, unseen),
    )
    for name, group in zip(groups._fields, groups):
        print(
            f"{name:15} {len(group.user_ids):5} workers {len(group):7} comparisons, d = {group.num_features}"
        )
    print(f"{'warning: ' if both else ''}posts on both the training and the test side: {len(both)}")
    return groups


def planted(
    seed, num_workers=planted_workers, pairs=planted_pairs, num_features=planted_features,
    num_directions=planted_directions, concentration=planted_concentration, best_accuracy=planted_accuracy,
):  # fmt: skip
    return planted_population(
        num_workers, {"train": pairs, "validation": pairs}, num_features=num_features, num_directions=num_directions,
        concentration=concentration, best_accuracy=best_accuracy, seed=seed,
    )  # fmt: skip


def main():
    args = settings(globals())
    torch_device, alpha_list = pick_device(args.device), alphas_of(args)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.synthetic:
        population = planted(
            args.seed, args.planted_workers, args.planted_pairs, args.planted_features, args.planted_directions,
            args.planted_concentration, args.planted_accuracy,
        )  # fmt: skip
    else:
        population = None
    output = args.results / ("train_basis_synthetic" if args.synthetic else "train_basis")
    cells = []
    for starts in repeats_of(args):
        train, test = (
            population.splits.values()
            if population
            else load_sides(args.data, args.train_posts, starts[0])
        )
        groups = split_workers(
            train, test, args.min_comparisons, args.max_train, args.max_few_shot, starts[0]
        )
        seen, unseen = groups.train.user_ids, groups.unseen.user_ids
        cells += run(
            args.K_list, alpha_list, train.head, *groups, len(seen), len(unseen), torch_device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts, solver=args.solver,
            baselines=args.baselines, save=output,
        ).cells  # fmt: skip
        if population is not None:
            cells.append(best_cell(population, groups, starts[0]))
    if population is not None:
        print(
            f"planted workers: the best possible accuracy is {args.planted_accuracy:.0%} by construction"
        )
    report(output, cells, args)
    print(f"results are in {output}.json and .png, V and W beside them")


if __name__ == "__main__":
    start(main)
