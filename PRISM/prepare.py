"""PRISM, step 1: from the public survey and conversations to clean dialogues and the published split of them.

    python PRISM/prepare.py                     from the Hub, 65 MB
    python PRISM/prepare.py --source FOLDER     a folder with survey.jsonl and conversations.jsonl

Reads:  HannahRoseKirk/prism-alignment: survey.jsonl (1,500 rows), conversations.jsonl (8,011 rows), line by line
Writes: data/prism_split_ids_50.json (who is seen and which dialogues train, as published), data/dialogues.jsonl
Cost:   seconds, no model; the next step is generate-prism-embeddings.py.
"""

import json
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np

from lore.common import InputError, start, written_whole
from lore.conversations import SURROGATE, read_json_lines
from lore.settings import settings

# --------------------------------------------------------------------------------------------------- settings ---
source = "HannahRoseKirk/prism-alignment"  # Hub data set, or a folder with survey.jsonl and conversations.jsonl
seen_fraction = 0.8  # share of users that are seen: 0.8 as in the published code, 0.5 for halves as in the paper
train_fraction = 0.5  # share of each user's dialogues that train, rounded down; the rest test
min_dialogues = 6  # users with fewer are left out
seed = 123  # of the split; 123 gives the published one
data = HERE / "data"  # where the split and the dialogues go
# --------------------------------------------------------------------------------------------------------------------

EMPTY = "EMPTY STRING"  # how upstream writes a reply without text


def locate(source, name):
    """Path of one upstream file: in a local folder, or fetched from the Hub. InputError: neither works."""
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise InputError(f"{Path(source) / name} is missing")
        return Path(source) / name
    from huggingface_hub import (
        hf_hub_download,  # plain files: the data set's own loader would hide line numbers
    )

    try:
        return Path(hf_hub_download(source, name, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source} is no folder here, and its {name} cannot be fetched: {reason}"
        ) from error


def read_users(path):
    """Users who completed a conversation, in survey order -> {user_id: []}, to be filled with their dialogues."""
    users = {}
    for number, row in read_json_lines(path):
        user, completed = row.get("user_id"), row.get("num_completed_conversations")
        if not isinstance(user, str) or not isinstance(completed, int):
            raise InputError(
                f"{path}, line {number}: needs user_id and num_completed_conversations"
            )
        if user in users:
            raise InputError(f"{path}, line {number}: {user} stands here for the second time")
        if completed > 0:
            users[user] = []
    return users


def read_turns(place, row):
    """Turns of one dialogue: [{"user": [texts], "chosen": [texts], "rejected": [texts]}]. InputError: bad schema."""
    count, history = row.get("conversation_turns"), row.get("conversation_history")
    if not isinstance(count, int) or not isinstance(history, list):
        raise InputError(f"{place}: needs conversation_turns and conversation_history")
    turns = [{"user": [], "chosen": [], "rejected": []} for _ in range(count)]
    for number, message in enumerate(history):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise InputError(f"{where}: not an object")
        role, turn, content = (message.get(key) for key in ("role", "turn", "content"))
        if role not in ("user", "model"):
            raise InputError(f"{where}: role is {role!r}, neither user nor model")
        if not isinstance(turn, int) or not 0 <= turn < count:
            raise InputError(f"{where}: turn {turn!r} of a dialogue of {count} turns")
        if not isinstance(content, str):
            raise InputError(f"{where}: content is a {type(content).__name__}, not text")
        if SURROGATE.search(content):
            raise InputError(f"{where}: half a character (a lone surrogate) in {content[:60]!r}")
        if role == "model" and not isinstance(message.get("if_chosen"), bool):
            raise InputError(f"{where}: a reply without if_chosen")
        kind = "user" if role == "user" else "chosen" if message["if_chosen"] else "rejected"
        turns[turn][kind].append(content)
    return turns


def read_dialogues(path, users):
    """{dialogue id: turns}, each id also noted with its user in `users`; those without one full turn are left out."""
    dialogues = {}
    for number, row in read_json_lines(path):
        place, dialogue, user = (
            f"{path}, line {number}",
            row.get("conversation_id"),
            row.get("user_id"),
        )
        if not isinstance(dialogue, str) or dialogue in dialogues:
            raise InputError(
                f"{place}: conversation_id {dialogue!r} is missing or stands here for the second time"
            )
        if not isinstance(user, str) or user not in users:
            raise InputError(
                f"{place}: {dialogue} is by {user!r}, who is not in survey.jsonl or completed nothing"
            )
        turns = read_turns(place, row)
        if any(
            all(turn.values()) for turn in turns
        ):  # as published: one turn with all three is enough
            dialogues[dialogue] = turns
            users[user].append(dialogue)
        else:
            print(
                f"left out: dialogue {dialogue} of {user}, where no turn has a question, a chosen and a rejected reply"
            )
    return dialogues


def split_users(users, seen_fraction, train_fraction, min_dialogues, seed):
    """The published split, draw by draw (NumPy's legacy generator), under its published keys."""
    rng = np.random.RandomState(seed)
    order = np.array([user for user, ids in users.items() if ids])
    rng.shuffle(order)
    split = {
        "train_dialog_ids": [],
        "test_dialog_ids": [],
        "seen_user_ids": {},
        "unseen_user_ids": {},
    }
    first_unseen = int(len(order) * seen_fraction)
    for place, user in enumerate(order.tolist()):
        if len(users[user]) >= min_dialogues:
            if place < first_unseen:
                split["seen_user_ids"][user] = len(split["seen_user_ids"]) + 1
            else:
                split["unseen_user_ids"][user] = 0
            ids = np.array(users[user])
            rng.shuffle(ids)
            train = int(len(ids) * train_fraction)
            split["train_dialog_ids"] += ids[:train].tolist()
            split["test_dialog_ids"] += ids[train:].tolist()
    return split


def clean(turns, counts):
    """Turns -> [{"prompt", "chosen", "rejected": [..]}], to where the history breaks off; counts what is left out.

    Differs from the published code, which hands all rejected replies of a turn over as one message.
    """
    kept = []
    for place, turn in enumerate(turns):
        if len(turn["user"]) != 1 or not turn["chosen"]:
            counts["turns after a history that breaks off"] += len(turns) - place
            break
        chosen, rejected = turn["chosen"][0].strip(), []
        counts["repeated chosen replies"] += turn["chosen"].count(turn["chosen"][0]) - 1
        counts["second chosen replies with another text"] += len({*turn["chosen"]}) - 1
        for reply in (text.strip() for text in turn["rejected"]):
            if {chosen, reply} & {"", EMPTY}:
                counts["pairs with an empty reply"] += 1
            elif chosen == reply:
                counts["pairs of identical replies"] += 1
            else:
                rejected.append(reply)
        shown = "" if chosen == EMPTY else chosen  # in the history stands what the person saw
        kept.append({"prompt": turn["user"][0].strip(), "chosen": shown, "rejected": rejected})
    return kept


def main():
    args = settings(globals())
    if not (0 < args.seen_fraction < 1 and 0 < args.train_fraction < 1):
        raise InputError("seen_fraction and train_fraction lie between 0 and 1")
    args.data.mkdir(parents=True, exist_ok=True)
    users = read_users(locate(args.source, "survey.jsonl"))
    dialogues = read_dialogues(locate(args.source, "conversations.jsonl"), users)
    print(f"{len(dialogues)} dialogues by {sum(map(bool, users.values()))} users")
    split = split_users(
        users, args.seen_fraction, args.train_fraction, args.min_dialogues, args.seed
    )
    if not (split["seen_user_ids"] and split["unseen_user_ids"]):
        raise InputError(
            f"too few users with {args.min_dialogues} dialogues to have seen and unseen ones"
        )
    with written_whole(args.data / "prism_split_ids_50.json") as file:
        file.write_text(json.dumps(split, indent=4))

    counts, pairs = Counter(), 0
    owner = {dialogue: user for user, ids in users.items() for dialogue in ids}
    used = {
        *split["train_dialog_ids"],
        *split["test_dialog_ids"],
    }  # all are written: another split needs no new file
    with (
        written_whole(args.data / "dialogues.jsonl") as path,
        open(path, "w", encoding="utf-8") as file,
    ):
        for dialogue in dialogues:
            turns = clean(dialogues[dialogue], counts)
            pairs += sum(len(turn["rejected"]) for turn in turns) if dialogue in used else 0
            file.write(
                json.dumps({"dialogue": dialogue, "user_id": owner[dialogue], "turns": turns})
                + "\n"
            )
    print(
        f"{len(split['seen_user_ids'])} seen and {len(split['unseen_user_ids'])} unseen users with {pairs} pairs in"
    )
    print(
        f"{len(split['train_dialog_ids'])} training and {len(split['test_dialog_ids'])} test dialogues"
    )
    left_out = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
    print(f"left out in all dialogues: {left_out or 'nothing'}")
    print(
        f"dialogues and their split are in {args.data}; next: python PRISM/generate-prism-embeddings.py"
    )


if __name__ == "__main__":
    start(main)
