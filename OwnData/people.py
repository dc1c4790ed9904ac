"""Your own people: whoever stands in the file that prepare.py was given.

prepare.py leaves data/comparisons.safetensors (`embeddings`, and the reward model's `head`) and
data/comparisons.parquet, a row per comparison: `user_id`, `prompt`, `chosen` and `rejected` (rows of
the embeddings), `side` (train or test, or nothing) and `row` (its place in the file).

    load(folder)                Split: what prepare.py has left
    plant(args)                 the same of people whose rewards are known: the settings below
    split(prepared, .., seed)   Groups: who is seen and who is not, what each is fitted and tested on
"""

from lore.common import InputError
from lore.fit.groups import people_apart, print_groups, prompts_apart
from lore.fit.planted import planted_population
from lore.splits import load_split

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


def load(folder):
    """The prepared comparisons. InputError: they are not there, or damaged."""
    return load_split(folder / "comparisons", PREPARE, needed=NEEDED)


def plant(args):
    """Comparisons of people whose rewards are known, as many of each."""
    return planted_population(args.planted_people, {"all": args.planted_pairs}, args)["all"]


def split(prepared, min_comparisons, max_few_shot, train_prompts, seed):
    """Half of the people seen, half unseen -> Groups, each tested on the prompts held out for everybody.

    The sides are those of the file, or a share `train_prompts` of the prompts is trained on, drawn by
    `seed`; at most max_few_shot pairs of an unseen person are known. InputError: fewer than two people
    have min_comparisons on each side, a share that leaves one side empty.
    """
    frame = prepared.frame
    if "side" in frame and frame["side"].notna().any():
        on_train = frame["side"] == "train"
        train, test = frame[on_train], frame[~on_train]
    elif not 0 < train_prompts < 1:
        raise InputError(f"--train_prompts {train_prompts}: a share between 0 and 1")
    else:
        train, test = prompts_apart(frame, train_prompts, seed)
    sides = prepared._replace(frame=train), prepared._replace(frame=test)
    groups = people_apart(*sides, min_comparisons, len(frame), max_few_shot, seed)
    print_groups(groups, "people")
    trained, tested = train["prompt"].nunique(), test["prompt"].nunique()
    print(f"prompts trained on: {trained}, tested on: {tested}, both: 0")
    return groups
