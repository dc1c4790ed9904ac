"""Settings of a sweep of ranks, stated once: flags of every train_basis.py."""

from lore.common import require
from lore.settings import SEEDS

# ------------------------------------------------------------------------------- settings ---
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people and what they are asked anew: spread of splits
mark_best = True  # say which rank held-out training prompts speak for; fits once more with adam
baselines = False  # also one mixture for all, another's, shuffled labels, what is one's own alone
device = "auto"  # auto, cpu, cuda, cuda:1
# -------------------------------------------------------------------------------------------

OF_RUN = ("num_iterations", "learning_rate", "solver", "mark_best", "baselines")


def run_options(args):
    """The settings that `run` takes under their own names."""
    return {name: getattr(args, name) for name in OF_RUN}


def repeats_of(args):
    """Lists of seeds: one list, or, where each repeat draws its split anew, a list for each."""
    require(args.repeats >= 1, "repeats = 0: at least one is needed")
    small = args.seed + args.repeats <= SEEDS
    require(small, f"--seed {args.seed} --repeats {args.repeats}: all seeds are below 2 ** 32")
    seeds = list(range(args.seed, args.seed + args.repeats))
    return [[seed] for seed in seeds] if args.resplit else [seeds]
