"""The people of Reddit TL;DR: workers who chose between two summaries of a post.

prepare.py leaves two sides here, data/train and data/validation, or only one of them. A side is
NAME.safetensors (`embeddings` of posts with a summary, and the reward model's `head`) and
NAME.parquet, a row per comparison: `user_id` (the worker), `prompt` (key of the post), `chosen` and
`rejected` (rows of the embeddings).

    load(folder)               Sides: what prepare.py has left
    plant(args)                the same of workers whose rewards are known: the settings below
    split(sides, .., seed)     Groups: who is seen and who is not, what each is fitted and tested on
"""

from typing import NamedTuple

from lore.common import require
from lore.fit.groups import names_of, people_apart, print_groups, prompts_apart
from lore.fit.planted import planted_population
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
    test: Split | None = None  # None: only one side was prepared, and `split` deals out its posts


def load(folder):
    """The prepared sides. InputError: neither is there, or they are of two models."""
    names = [name for name in ("train", "validation") if (folder / f"{name}.safetensors").exists()]
    splits = [load_split(folder / name, PREPARE, needed=NEEDED) for name in names or ["train"]]
    models = splits[0].model, splits[-1].model
    require(models[0] == models[1], f"{folder}: {names} were embedded by different models: {models}")
    return Sides(*splits)


def plant(args):
    """Sides of workers whose rewards are known, each with as many comparisons on either side."""
    pairs = {"train": args.planted_pairs, "validation": args.planted_pairs}
    return Sides(*planted_population(args.planted_workers, pairs, args).values())


def split(sides, min_comparisons, max_train, max_few_shot, train_posts, seed, drop_smallest=0):
    """Half of the workers seen, half unseen -> Groups, each tested on all of their test pairs.

    At most max_train pairs of a seen worker train and max_few_shot of an unseen one are known, drawn
    by `seed` as the workers are. drop_smallest: see `without_smallest`; train_posts: see `two_sides`.
    InputError: fewer than two workers have min_comparisons on each side.
    """
    train, test = two_sides(sides, train_posts, seed)
    train = without_smallest(train, drop_smallest)
    test = without_smallest(test, drop_smallest)
    groups = people_apart(train, test, min_comparisons, max_train, max_few_shot, seed, "workers")
    print_groups(groups, "workers")
    shared = len({*train.frame["prompt"]} & {*test.frame["prompt"]})
    print(f"{'warning: ' * bool(shared)}posts on both the training and the test side: {shared}")
    return groups


def without_smallest(side, count):
    """The side without its `count` workers of the fewest comparisons, of equal ones the first by name."""
    sizes = side.frame["user_id"].value_counts().sort_index().sort_values(kind="stable")
    smallest = sizes.index[:count]
    if count:
        print(f"left out: the {len(smallest)} workers with the fewest comparisons{names_of(smallest)}")
    return side._replace(frame=side.frame[~side.frame["user_id"].isin(smallest)])


def two_sides(sides, train_posts, seed):
    """(train, test) Splits: the two prepared ones, or the only one with a share of its posts on each.

    InputError: train_posts is not this share where one side is there, or is not 0 where two are.
    """
    train, test = sides
    if test is not None:
        require(not train_posts, f"--train_posts {train_posts} is for one side only, but both are here")
        return train, test
    share = "a --train_posts between 0 and 1 splits it by post"
    require(0 < train_posts < 1, f"only one side was prepared; {share}")
    to_train, to_test = prompts_apart(train.frame, train_posts, seed)
    return train._replace(frame=to_train), train._replace(frame=to_test)
