"""The people of PRISM: each had several dialogues and chose one reply in every turn.

The two steps before leave data/prism.safetensors (`embeddings` of dialogues up to a reply, and the
reward model's `head`), data/prism.parquet, a row per comparison: `user_id`, `dialogue`, `turn`,
`chosen`, `rejected` (rows of the embeddings), and data/prism_split_ids_50.json, the split: SPLIT_KEYS.

    load(folder)            Dialogues: what is there
    plant(args)             the same of people whose rewards are known: the settings below
    split(dialogues, ..)    Groups: who is seen and who is not, what each is fitted and tested on
"""

import hashlib
import json
from typing import NamedTuple

import numpy as np

from lore.common import InputError, require, told_as
from lore.fit.comparisons import Comparisons
from lore.fit.groups import Groups, names_of, print_groups
from lore.fit.planted import Planted, drawn_from, planted_rewards, planted_turns
from lore.splits import Split, load_split

# ------------------------------------------------------------------------------- settings ---
planted_users = 200  # of --synthetic: people, 80 % of them seen
planted_features = 64  # of --synthetic: width of the embeddings
planted_directions = 4  # of --synthetic: hidden rewards that people mix
planted_concentration = 0.2  # of --synthetic: Dirichlet parameter; small = different people
planted_accuracy = 0.9  # of --synthetic: how often a pair agrees with the person's true reward
# -------------------------------------------------------------------------------------------

PREPARE = "python PRISM/prepare.py"
GENERATE = "python PRISM/generate-prism-embeddings.py"
SHARES = (0.8, 0.5)  # of planted people that are seen, of each one's dialogues that train
SPLIT_KEYS = ("train_dialog_ids", "test_dialog_ids", "seen_user_ids", "unseen_user_ids")

# Dialogues by number of replies, people by number of dialogues (from six): counted in the ids that
# github.com/HannahKirk/prism-alignment publishes (results/clusters: 8,011 dialogues, 68,371 replies).
PEOPLE_OF_DIALOGUES = {6: 1283, 7: 5}
DIALOGUES_OF_REPLIES = {
    3: 4, 4: 57, 5: 525, 6: 2191, 7: 497, 8: 1906, 9: 311, 10: 1083, 11: 151, 12: 554, 13: 68, 14: 309,
    15: 34, 16: 119, 17: 19, 18: 69, 19: 7, 20: 33, 21: 8, 22: 43, 23: 2, 24: 9, 26: 6, 27: 3, 28: 2, 44: 1,
}  # fmt: skip


class Dialogues(NamedTuple):
    comparisons: Split
    ids: dict  # SPLIT_KEYS -> ids


def load(folder):
    """The embedded dialogues and their split. InputError: missing, damaged, of other dialogues."""
    path = folder / "prism_split_ids_50.json"
    require(path.exists(), f"{path} is missing; make it with: {PREPARE} && {GENERATE}")
    again = f"make it again with: {PREPARE}"
    with told_as(f"{path} is damaged", ValueError, TypeError, KeyError, then=again):
        written = json.loads(path.read_text("utf-8-sig"))
        ids = {name: written[name] for name in SPLIT_KEYS}
    prism = load_split(folder / "prism", f"{PREPARE} && {GENERATE}", needed=["user_id", "dialogue"])
    texts = folder / "dialogues.jsonl"
    if texts.exists() and hashlib.sha256(texts.read_bytes()).hexdigest() != prism.made_from:
        again = f"delete it and its .parquet and run again: {GENERATE}"
        raise InputError(f"{folder / 'prism'}.safetensors was made of another {texts}; {again}")
    return Dialogues(prism, ids)


def split(dialogues, seed=None, seen_fraction=0.0, least=0):
    """Groups of seen and unseen people, training and test dialogues; a shot is a dialogue.

    seed: draws the split anew, None = as prepared; seen_fraction: of that, 0 = as prepared; least:
    training dialogues an unseen person needs.
    """
    require(seen_fraction < 1, f"--seen_fraction {seen_fraction}: below 1, or nobody is unseen")
    as_prepared = "the split is as prepared; add --resplit"
    require(seed is not None or not seen_fraction, f"--seen_fraction {seen_fraction}: {as_prepared}")
    table, frame, *_ = dialogues.comparisons
    ids = dialogues.ids if seed is None else drawn_anew(dialogues, seed, seen_fraction)
    on_train = frame["dialogue"].isin(ids["train_dialog_ids"])
    on_test = frame["dialogue"].isin(ids["test_dialog_ids"])
    seen = {*ids["seen_user_ids"]}
    unseen = {*ids["unseen_user_ids"]}
    twice = (on_train & on_test).any() or seen & unseen
    require(not twice, "a dialogue of the split trains and tests, or a person is seen and unseen")
    train = frame[on_train]
    test = frame[on_test]
    if least:
        counts = train.groupby("user_id")["dialogue"].nunique()
        few = unseen - {*counts.index[counts >= least]}
        text = f"{len(few)} unseen people with fewer than {least} dialogues"
        print(f"left out: {text} (the largest of --num_shots){names_of(few)}")
        unseen -= few
        require(unseen, f"no unseen person has {least} training dialogues; lower --num_shots")
    complete = {*train["user_id"]} & {*test["user_id"]}
    missing = (seen | unseen) - complete
    seen = sorted(seen & complete)
    unseen = sorted(unseen & complete)
    require(seen and unseen, "nobody seen, or unseen, has pairs in training and test dialogues")
    groups = []
    for users in (seen, unseen):
        for side in (train, test):
            groups.append(Comparisons.from_frame(table, side, users, "dialogue", prompt="dialogue"))
    groups = Groups(*groups)
    print_groups(groups, "people")
    unused = f"{len(frame) - len(train) - len(test)} pairs of no side"
    print(f"left out: {len(missing)} people without pairs on both sides{names_of(missing)}; {unused}")
    return groups


def drawn_anew(dialogues, seed, seen_fraction):
    """Ids of the same people and dialogues, drawn anew: a share of them seen, 0 = as many as prepared,
    the same share to train on."""
    train, test, seen, unseen = ({*dialogues.ids[name]} for name in SPLIT_KEYS)
    used = dialogues.comparisons.frame.query("dialogue in @train or dialogue in @test")
    users = {user: sorted({*names}) for user, names in used.groupby("user_id")["dialogue"]}
    train_fraction = round(len(train) / len(train | test), 2)  # 0.4997: odd numbers round down
    seen_fraction = seen_fraction or len(seen) / len(seen | unseen)
    return split_users(users, seen_fraction, train_fraction, 1, seed)


def split_users(users, seen_fraction, train_fraction, min_dialogues, seed):
    """The published split, draw by draw (NumPy's legacy generator), under its published keys."""
    rng = np.random.RandomState(seed)
    order = rng.permutation([user for user, ids in users.items() if ids])
    first_unseen = int(len(order) * seen_fraction)
    train, test, seen, unseen = [], [], {}, {}  # as SPLIT_KEYS
    for number, user in enumerate(order.tolist()):
        if len(users[user]) < min_dialogues:
            continue
        if number < first_unseen:
            seen[user] = len(seen) + 1
        else:
            unseen[user] = 0
        ids = rng.permutation(users[user])
        first_test = int(len(ids) * train_fraction)
        train += ids[:first_test].tolist()
        test += ids[first_test:].tolist()
    return dict(zip(SPLIT_KEYS, (train, test, seen, unseen)))


def plant(args):
    """Dialogues of PRISM's structure by people who mix hidden rewards."""
    import pandas as pd

    rng = np.random.default_rng(args.seed)
    V, W, head = planted_rewards(
        args.planted_users, args.planted_features, args.planted_directions,
        args.planted_concentration, rng,
    )  # fmt: skip
    users = {}
    turns = []
    sizes = []  # its replies
    for number, count in enumerate(drawn_from(PEOPLE_OF_DIALOGUES, args.planted_users, rng)):
        user = f"planted{number:04d}"
        users[user] = [f"{user}.{i}" for i in range(count)]
        for dialogue, replies in zip(users[user], drawn_from(DIALOGUES_OF_REPLIES, count, rng)):
            of_turns = replies_per_turn(int(replies))
            turns += [(user, dialogue, turn) for turn in range(len(of_turns))]
            sizes += of_turns
    turns = pd.DataFrame(turns, columns=["user_id", "dialogue", "turn"])
    person, _ = pd.factorize(turns["user_id"])  # 0, 1, .. as they come
    table, pairs = planted_turns(person, np.array(sizes), V, W, args.planted_accuracy, rng)
    frame = turns.iloc[pairs[:, 0]].assign(chosen=pairs[:, 1], rejected=pairs[:, 2])
    comparisons = Planted.of(V, users, W).split(table, frame.reset_index(drop=True), head)
    ids = split_users(users, *SHARES, min_dialogues=6, seed=args.seed)
    return Dialogues(comparisons, ids)


def replies_per_turn(replies):
    """Replies of a dialogue, turn by turn: up to four to the first question, two to later ones."""
    first = replies - 2 if replies < 5 else 4 - replies % 2
    return [first] + [2] * ((replies - first) // 2)
