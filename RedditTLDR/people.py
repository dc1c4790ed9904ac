"""The people of Reddit TL;DR: workers who chose between two summaries of a post.

prepare.py leaves two sides here, data/train and data/validation, or only one of them. A side is
NAME.safetensors (`embeddings` of posts with a summary, and the reward model's `head`) and
NAME.parquet, a row per comparison: `user_id` (the worker), `prompt` (key of the post), `chosen` and
`rejected` (rows of the embeddings).

    load(folder)               Sides: what prepare.py has left; with .head and .model of the embeddings
    plant(seed, ..)            the same of workers whose rewards are known; these are .planted
    split(sides, .., seed)     Groups: who is seen and who is not, what each is fitted and tested on
"""

from typing import NamedTuple

from lore.common import InputError
from lore.fit.groups import people_apart, print_groups, prompts_apart
from lore.fit.planted import Planted, planted_population
from lore.splits import Split, load_split

# ------------------------------------------------------------------------------- settings ---
planted_workers = 40  # of --synthetic: as many as in the paper
planted_pairs = 200  # of --synthetic: comparisons of each worker on each side
planted_features = 64  # of --synthetic: width of the embeddings
planted_directions = 4  # of --synthetic: hidden rewards that workers mix
planted_concentration = 0.2  # of --synthetic: Dirichlet parameter; small = different workers
planted_accuracy = 0.9  # of --synthetic: how often who knows the true rewards is right
# -------------------------------------------------------------------------------------------

PREPARE = "python RedditTLDR/prepare.py"
NEEDED = ("user_id", "prompt")  # columns beside chosen and rejected


class Sides(NamedTuple):
    train: Split
    test: Split | None  # None: only one side was prepared, and `split` deals out its posts
    planted: Planted | None = None

    @property
    def head(self):
        return self.train.head

    @property
    def model(self):
        return self.train.model


def load(folder):
    """The prepared sides. InputError: neither is there, or they are of two models."""
    found = [side for side in ("train", "validation") if (folder / f"{side}.safetensors").exists()]
    if len(found) == 1:
        return Sides(load_split(folder / found[0], PREPARE, needed=NEEDED), None)
    train = load_split(folder / "train", PREPARE, needed=NEEDED)
    test = load_split(folder / "validation", PREPARE, needed=NEEDED)
    if train.model != test.model:
        raise InputError(
            f"{folder}: train was embedded by {train.model}, validation by {test.model}"
        )
    return Sides(train, test)


def plant(
    seed,
    num_workers=planted_workers,
    pairs=planted_pairs,
    num_features=planted_features,
    num_directions=planted_directions,
    concentration=planted_concentration,
    best_accuracy=planted_accuracy,
):
    """Sides of workers whose rewards are known, each with as many comparisons on either side."""
    population = planted_population(
        num_workers,
        {"train": pairs, "validation": pairs},
        num_features=num_features,
        num_directions=num_directions,
        concentration=concentration,
        best_accuracy=best_accuracy,
        seed=seed,
    )
    return Sides(population.splits["train"], population.splits["validation"], population)


def split(sides, min_comparisons, max_train, max_few_shot, train_posts, seed):
    """Half of the workers seen, half unseen -> Groups, each tested on all of their test pairs.

    At most max_train pairs of a seen worker train and max_few_shot of an unseen one are known, drawn
    by `seed` as the workers are. train_posts: see `two_sides`. InputError: fewer than two workers
    have min_comparisons on each side.
    """
    train, test = two_sides(sides, train_posts, seed)
    groups = people_apart(train, test, min_comparisons, max_train, max_few_shot, seed, "workers")
    print_groups(groups, "workers")
    both = set(train.frame["prompt"]) & set(test.frame["prompt"])
    print(f"{'warning: ' if both else ''}posts on both the training and the test side: {len(both)}")
    return groups


def two_sides(sides, train_posts, seed):
    """(train, test) Splits: the two prepared ones, or the only one with a share of its posts on each.

    InputError: train_posts is not this share where one side is there, or is not 0 where two are.
    """
    train, test = sides.train, sides.test
    if test is not None:
        if train_posts:
            raise InputError(f"--train_posts {train_posts} is for one side only, but both are here")
        return train, test
    if not 0 < train_posts < 1:
        raise InputError(
            "only one side was prepared; a --train_posts between 0 and 1 splits it by post"
        )
    known, new = prompts_apart(train.frame, train_posts, seed)
    return train._replace(frame=known), train._replace(frame=new)
