"""Your own people: whoever stands in the file that prepare.py was given.

prepare.py leaves data/comparisons.safetensors (`embeddings`, and the reward model's `head`) and
data/comparisons.parquet, a row per comparison: `user_id`, `prompt`, `chosen` and `rejected` (rows of
the embeddings), `side` (train or test, or nothing) and `row` (its place in the file).

    load(folder)                Prepared: what prepare.py has left
    plant(seed, ..)             the same of people whose rewards are known; these are .planted
    split(prepared, .., seed)   Groups: who is seen and who is not, what each is fitted and tested on
"""

from typing import NamedTuple

from lore.common import InputError
from lore.fit.groups import people_apart, print_groups, prompts_apart
from lore.fit.planted import Planted, planted_population
from lore.splits import Split, load_split

# ------------------------------------------------------------------------------- settings ---
planted_people = 60  # of --synthetic: about as many as in MT-Bench's human judgments
planted_pairs = 80  # of --synthetic: comparisons of each person
planted_features = 64  # of --synthetic: width of the embeddings
planted_directions = 3  # of --synthetic: hidden rewards that people mix
planted_concentration = 0.2  # of --synthetic: Dirichlet parameter; small = different people
planted_accuracy = 0.9  # of --synthetic: how often who knows the true rewards is right
# -------------------------------------------------------------------------------------------

PREPARE = "python OwnData/prepare.py --source FILE"
NEEDED = ("user_id", "prompt", "side", "row")  # columns beside chosen and rejected


class Prepared(NamedTuple):
    comparisons: Split
    planted: Planted | None = None

    @property
    def head(self):
        return self.comparisons.head

    @property
    def model(self):
        return self.comparisons.model


def load(folder):
    """The prepared comparisons. InputError: they are not there, or damaged."""
    return Prepared(load_split(folder / "comparisons", PREPARE, needed=NEEDED))


def plant(
    seed,
    num_people=planted_people,
    pairs=planted_pairs,
    num_features=planted_features,
    num_directions=planted_directions,
    concentration=planted_concentration,
    best_accuracy=planted_accuracy,
):
    """People whose rewards are known, each with as many comparisons."""
    population = planted_population(
        num_people,
        {"all": pairs},
        num_features=num_features,
        num_directions=num_directions,
        concentration=concentration,
        best_accuracy=best_accuracy,
        seed=seed,
    )
    return Prepared(population.splits["all"], population)


def split(prepared, min_comparisons, max_few_shot, train_prompts, seed):
    """Half of the people seen, half unseen -> Groups, each tested on the prompts held out for everybody.

    The sides are those of the file, or a share `train_prompts` of the prompts is trained on, drawn by
    `seed`; at most max_few_shot pairs of an unseen person are known. InputError: fewer than two people
    have min_comparisons on each side, a share that leaves one side empty.
    """
    whole = prepared.comparisons
    if "side" in whole.frame and whole.frame["side"].notna().any():
        on_train = whole.frame["side"] == "train"
        known, new = whole.frame[on_train], whole.frame[~on_train]
    elif not 0 < train_prompts < 1:
        raise InputError(f"--train_prompts {train_prompts}: a share between 0 and 1")
    else:
        known, new = prompts_apart(whole.frame, train_prompts, seed)
    sides = whole._replace(frame=known), whole._replace(frame=new)
    groups = people_apart(*sides, min_comparisons, len(whole.frame), max_few_shot, seed)
    print_groups(groups, "people")
    known, new = known["prompt"].nunique(), new["prompt"].nunique()
    print(f"prompts trained on: {known}, tested on: {new}, both: 0")
    return groups
