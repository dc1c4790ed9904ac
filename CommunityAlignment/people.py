"""The people of Community Alignment: who is seen, who is not, and which of their choices are known.

prepare.py leaves data/comparisons.safetensors (`embeddings`, and the reward model's `head`) and
data/comparisons.parquet, a row per pair: `user_id`, `chosen` and `rejected` (rows of the embeddings),
`turn` (equal for the pairs of one choice), `item` (what was asked, with all replies), `group` (the
conversation's first prompt), `lang`, and what the person says of themselves: `TRAITS`.

    load(folder)                Split: what prepare.py has left
    plant(args)                 the same of people whose rewards are known: the settings below
    split(prepared, .., seed)   Groups: who is seen and who is not, what each is fitted and tested on
"""

import numpy as np

from lore.common import InputError
from lore.fit.groups import people_apart, print_groups, prompts_apart
from lore.fit.planted import Planted, draw_choices, planted_rewards, temperature
from lore.splits import load_split

# ------------------------------------------------------------------------------- settings ---
planted_people = 160  # of --synthetic; the file has more than 3,500, 941 of them English and busy
planted_conversations = 40  # of --synthetic: of each person; the file's median is 26
planted_prompts = 60  # of --synthetic: first prompts that people share; the file has 2,500
planted_features = 128  # of --synthetic: width of the embeddings
planted_countries = 2  # of --synthetic: each with a taste of its own that its people mix around
planted_popularity = 1.0  # of --synthetic: what a reply is worth to all, over the std of rewards
planted_accuracy = 0.8  # of --synthetic: how often who knows all of this is right about a pair
# -------------------------------------------------------------------------------------------

PREPARE = "python CommunityAlignment/prepare.py"
TRAITS = ("country", "lang", "age", "political", "gender", "education_level", "ethnicity")
NEEDED = ("user_id", "turn", "item", "group", *TRAITS)  # columns beside chosen and rejected
SPLITS = {"group": "group", "turn": "item"}  # what is dealt out -> what is held out together
LIKELIHOODS = ("pairs", "softmax")
REPLIES = 4  # to a prompt
WRITTEN = 0.31  # share of first prompts that people wrote themselves (of the file)
GOES_ON = 0.71  # after each turn but the fourth: 2.58 turns of a conversation, as in the file
WITHIN = 5.0  # weight of a country's taste over what is a person's own; large = alike


def load(folder):
    """The prepared comparisons. InputError: they are not there, or damaged."""
    return load_split(folder / "comparisons", PREPARE, needed=NEEDED)


def split(prepared, deal, min_choices, max_few_shot, train_share, likelihood, seed):
    """Half of the people seen, half unseen -> Groups, each tested on what is held out for everybody.

    deal: "group" = first prompts, with all that anybody chose in conversations that begin with them,
    are trained or tested on; "turn" = choices, as others have done: items that people share are
    then on both sides. min_choices on either side, of a person; max_few_shot: choices known of an
    unseen one. InputError: fewer than two such people, an unknown deal or likelihood, a bad share.
    """
    if deal not in SPLITS or likelihood not in LIKELIHOODS or not 0 < train_share < 1:
        given = f"split {deal!r}, likelihood {likelihood!r}, train_share {train_share}"
        raise InputError(f"{given}: {[*SPLITS]}; {[*LIKELIHOODS]}; between 0 and 1")
    train, test = prompts_apart(prepared.frame, train_share, seed, column=deal)
    sides = prepared._replace(frame=train), prepared._replace(frame=test)
    groups = people_apart(
        *sides, min_choices, len(prepared.frame), max_few_shot, seed, prompt=SPLITS[deal],
        choice="turn", softmax=likelihood == "softmax",
    )  # fmt: skip
    print_groups(groups, "people")
    shared = len({*train["item"]} & {*test["item"]})
    tested = f"of {test['item'].nunique()} items on the test side {shared}"
    print(f"split by {deal}: {tested} are on the training side as well")
    return groups


def plant(args):
    """Conversations of the file's structure by people whose tastes lie around their country's.

    Some replies are liked more than others by all people alike, whatever their embeddings say: who
    knows an item knows that, and it helps with no other.
    """
    rng = np.random.default_rng(args.seed)
    people = args.planted_people
    countries = args.planted_countries
    V, _, head = planted_rewards(2, args.planted_features, countries, 1.0, rng)
    country = rng.integers(countries, size=people)
    W = rng.dirichlet(np.ones(countries), people) / WITHIN + np.eye(countries)[country]
    W = W / W.sum(1, keepdims=True)
    turns = drawn_turns(args, rng)
    rows = max(args.planted_prompts, turns["item"].max() + 1) * REPLIES
    table = rng.standard_normal((rows, args.planted_features)).astype(np.float32)
    replies, chosen = choices_of(turns, table, V, W, args, rng)
    turn, other = np.nonzero(np.arange(REPLIES) != chosen[:, None])  # a row per pair
    user_ids = np.array([f"planted{person:04d}" for person in range(people)])
    frame = turns.assign(
        item=turns["item"].astype(str), user_id=user_ids[turns["person"]], turn=turns.index,
        **dict.fromkeys(TRAITS, ""),
    )  # fmt: skip
    frame["country"] = [f"no. {number}" for number in country[turns["person"]]]
    frame["lang"] = "en"
    frame = frame.iloc[turn].assign(chosen=replies[turn, chosen[turn]], rejected=replies[turn, other])
    return Planted.of(V, user_ids, W).split(table, frame.reset_index(drop=True), head)


def drawn_turns(args, rng):
    """Data frame, a row per turn: person, group, and number of its item.

    The first items are the prompts that people share; what they write themselves follows.
    """
    import pandas as pd

    rows = []
    items = args.planted_prompts
    for person in range(args.planted_people):
        for number in range(args.planted_conversations):
            written = rng.random() < WRITTEN
            shared = rng.integers(args.planted_prompts)
            group = f"c{person}.{number}" if written else f"p{shared}"
            asked = [items if written else shared]
            items += written
            while len(asked) < 4 and rng.random() < GOES_ON:
                asked.append(items)
                items += 1
            for item in asked:
                rows.append((person, group, item))
    return pd.DataFrame(rows, columns=["person", "group", "item"])


def choices_of(turns, table, V, W, args, rng):
    """Table rows of each turn's replies, in an order of each person's own as letters are, and the place
    of the one chosen: (turns, REPLIES), (turns,)."""
    rewards = table @ V  # (rows, d) @ (d, countries)
    liked = args.planted_popularity * rewards.std() * rng.standard_normal(len(table))  # (rows,)
    letters = rng.permuted(np.tile(np.arange(REPLIES), (len(turns), 1)), axis=1)
    replies = turns["item"].to_numpy()[:, None] * REPLIES + letters
    worth = np.einsum("tra,ta->tr", rewards[replies], W[turns["person"]]) + liked[replies]
    return replies, draw_choices(worth, temperature(worth, args.planted_accuracy), rng)
