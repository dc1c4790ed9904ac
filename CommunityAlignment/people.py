"""The people of Community Alignment: who is seen, who is not, and which of their choices are known.

prepare.py leaves data/comparisons.safetensors (`embeddings`, and the reward model's `head`) and
data/comparisons.parquet, a row per pair: `user_id`, `chosen` and `rejected` (rows of the embeddings),
`turn` (equal for the pairs of one choice), `item` (what was asked, with all replies), `group` (the
conversation's first prompt), `lang`, and what the person says of themselves: `TRAITS`.

    load(folder)                Prepared: what prepare.py has left
    plant(seed, ..)             the same of people whose rewards are known; these are .planted
    split(prepared, .., seed)   Groups: who is seen and who is not, what each is fitted and tested on
"""

from typing import NamedTuple

import numpy as np

from choices import most_said
from lore.common import InputError
from lore.fit.groups import people_apart, print_groups, prompts_apart
from lore.fit.planted import Planted, draw_choices, planted_rewards, temperature
from lore.splits import Split, load_split

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


class Prepared(NamedTuple):
    comparisons: Split
    planted: Planted | None = None

    @property
    def head(self):
        return self.comparisons.head

    @property
    def model(self):
        return self.comparisons.model

    @property
    def language(self):
        """{user id: what they mostly choose in}."""
        return most_said(self.comparisons.frame, "lang")


def load(folder):
    """The prepared comparisons. InputError: they are not there, or damaged."""
    return Prepared(load_split(folder / "comparisons", PREPARE, needed=NEEDED))


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
    whole = prepared.comparisons
    known, new = prompts_apart(whole.frame, train_share, seed, column=deal)
    sides = whole._replace(frame=known), whole._replace(frame=new)
    groups = people_apart(
        *sides, min_choices, len(whole.frame), max_few_shot, seed, prompt=SPLITS[deal],
        choice="turn", softmax=likelihood == "softmax",
    )  # fmt: skip
    print_groups(groups, "people")
    both = len({*known["item"]} & {*new["item"]})
    items = (
        f"of {new['item'].nunique()} items on the test side {both} are on the training side as well"
    )
    print(f"split by {deal}: {items}")
    return groups


def plant(
    seed, num_people=planted_people, conversations=planted_conversations, prompts=planted_prompts,
    num_features=planted_features, countries=planted_countries, popularity=planted_popularity,
    best_accuracy=planted_accuracy,
):  # fmt: skip
    """Conversations of the file's structure by people whose tastes lie around their country's.

    Some replies are liked more than others by all people alike, whatever their embeddings say: who
    knows an item knows that, and it helps with no other.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    V, _, head = planted_rewards(2, num_features, countries, 1.0, rng)
    country = rng.integers(countries, size=num_people)
    W = rng.dirichlet(np.ones(countries), num_people) / WITHIN + np.eye(countries)[country]
    W = W / W.sum(1, keepdims=True)
    turns = []  # person, conversation, place, group, number of the turn whose replies it has
    number = prompts
    for person in range(num_people):
        for talk in range(conversations):
            own = rng.random() < WRITTEN
            shared = rng.integers(prompts)
            group = f"c{person}.{talk}" if own else f"p{shared}"
            asked = [number if own else shared]
            number += own
            while len(asked) < 4 and rng.random() < GOES_ON:
                asked.append(number)
                number += 1
            turns += [
                (person, f"{person}.{talk}", at, group, item) for at, item in enumerate(asked)
            ]
    frame = pd.DataFrame(turns, columns=["person", "conversation", "place", "group", "item"])
    table = rng.standard_normal((number * REPLIES, num_features)).astype(np.float32)
    rewards = table @ V  # (rows, d) @ (d, countries)
    liked = popularity * rewards.std() * rng.standard_normal(len(table))  # (rows,)
    replies = frame["item"].to_numpy()[:, None] * REPLIES + rng.permuted(
        np.tile(np.arange(REPLIES), (len(frame), 1)), axis=1
    )  # in an order of each person's own, as letters are
    worth = np.einsum("tra,ta->tr", rewards[replies], W[frame["person"]]) + liked[replies]
    chosen = draw_choices(worth, temperature(worth, best_accuracy), rng)
    turn, other = np.nonzero(np.arange(REPLIES) != chosen[:, None])
    user_ids = [f"planted{person:04d}" for person in range(num_people)]
    frame["user_id"] = np.array(user_ids)[frame["person"]]
    frame["country"] = np.array([f"no. {name}" for name in range(countries)])[country][
        frame["person"]
    ]
    frame = frame.assign(turn=np.arange(len(frame)), lang="en", age="", political="", gender="")
    frame = frame.assign(education_level="", ethnicity="", item=frame["item"].astype(str))
    frame = frame.iloc[turn].assign(
        chosen=replies[turn, chosen[turn]], rejected=replies[turn, other]
    )
    split = {"all": (table, frame.reset_index(drop=True), head)}
    population = Planted.of(split, V, user_ids, W)
    return Prepared(population.splits["all"], population)
