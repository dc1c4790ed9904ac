"""PRISM, step 1: from the public survey and conversations to clean dialogues and their split.

    python PRISM/prepare.py                     from the Hub, 65 MB
    python PRISM/prepare.py --source FOLDER     a folder with survey.jsonl and conversations.jsonl

Reads:  HannahRoseKirk/prism-alignment: survey.jsonl (1,500 rows), conversations.jsonl (8,011 rows),
        line by line
Writes: data/prism_split_ids_50.json (who is seen and which dialogues train, as published),
        data/dialogues.jsonl
Cost:   seconds, no model; the next step is generate-prism-embeddings.py.
"""

import json
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import require, require_writable, start, written_whole
from lore.settings import settings
from lore.text.conversations import find_file, read_json_lines
from lore.upstream_values import as_list, truth, whole_number
from people import split_users

# ------------------------------------------------------------------------------- settings ---
source = "HannahRoseKirk/prism-alignment"  # Hub data set, or a folder with its two .jsonl files
seen_fraction = 0.8  # share of users that are seen: 0.8 as in published code, 0.5 as in the paper
train_fraction = 0.5  # share of each user's dialogues that train, rounded down; the rest test
min_dialogues = 6  # users with fewer are left out
seed = 123  # of the split; 123 gives the published one
data = HERE / "data"  # where the split and the dialogues go
# -------------------------------------------------------------------------------------------

EMPTY = "EMPTY STRING"  # how upstream writes a reply without text


def read_users(path):
    """Users who completed a conversation, in survey order -> {user_id: []}, to be filled."""
    users = {}
    for place, row in read_json_lines(path):
        user = row.get("user_id")
        completed = whole_number(row.get("num_completed_conversations"))
        whole = isinstance(user, str) and completed is not None
        require(whole, f"{place}: needs user_id and num_completed_conversations")
        require(user not in users, f"{place}: {user} stands here for the second time")
        if completed > 0:
            users[user] = []
    return users


def read_turns(place, row):
    """[{"user": [texts], "chosen": [texts], "rejected": [texts]}]. InputError: no dialogue of PRISM."""
    count = whole_number(row.get("conversation_turns"))
    history = as_list(row.get("conversation_history"))
    whole = count is not None and history is not None
    require(whole, f"{place}: needs conversation_turns and conversation_history")
    turns = [{"user": [], "chosen": [], "rejected": []} for _ in range(count)]
    for number, message in enumerate(history):
        where = f"{place}, message {number}"
        require(isinstance(message, dict), f"{where}: not an object")
        role, content = message.get("role"), message.get("content")
        turn = whole_number(message.get("turn"))
        chosen = truth(message.get("if_chosen"))
        usable = role in ("user", "model") and isinstance(content, str) and turn in range(count)
        usable = usable and (role == "user" or chosen is not None)
        needed = f"role user or model, content that is text, turn below {count}, if_chosen of a reply"
        require(usable, f"{where} needs {needed}: {str(message)[:120]}")
        kind = "user" if role == "user" else "chosen" if chosen else "rejected"
        turns[turn][kind].append(content)
    return turns


def read_dialogues(path, users):
    """{dialogue id: row of dialogues.jsonl}, each id also noted with its user.

    Those without a full turn are left out; the turns are those of read_turns.
    """
    dialogues = {}
    for place, row in read_json_lines(path):
        dialogue = row.get("conversation_id")
        user = row.get("user_id")
        new = isinstance(dialogue, str) and dialogue not in dialogues
        require(new, f"{place}: conversation_id {dialogue!r} is missing or stands here for the second time")
        surveyed = isinstance(user, str) and user in users
        stranger = "who is not in survey.jsonl or completed nothing"
        require(surveyed, f"{place}: {dialogue} is by {user!r}, {stranger}")
        turns = read_turns(place, row)
        if any(all(turn.values()) for turn in turns):  # as published: one full turn is enough
            dialogues[dialogue] = {"dialogue": dialogue, "user_id": user, "turns": turns}
            users[user].append(dialogue)
        else:
            lacking = "no turn has a question, a chosen and a rejected reply"
            print(f"left out: dialogue {dialogue} of {user}, where {lacking}")
    return dialogues


def clean(turns, counts):
    """Turns -> [{"prompt", "chosen", "rejected": [..]}], to where the history breaks off.

    counts: what is left out, by reason. Differs from the published code, which hands all rejected
    replies of a turn over as one message.
    """
    clean_turns = []
    for number, turn in enumerate(turns):
        if len(turn["user"]) != 1 or not turn["chosen"]:
            counts["turns after a history that breaks off"] += len(turns) - number
            break
        chosen = turn["chosen"][0].strip()
        rejected = []
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
        prompt = turn["user"][0].strip()
        clean_turns.append({"prompt": prompt, "chosen": shown, "rejected": rejected})
    return clean_turns


def main():
    args = settings(globals())
    possible = 0 < args.seen_fraction < 1 and 0 < args.train_fraction < 1
    require(possible, "seen_fraction and train_fraction lie between 0 and 1")
    require_writable(args.data / "dialogues.jsonl")
    users = read_users(find_file(args.source, "survey.jsonl"))
    dialogues = read_dialogues(find_file(args.source, "conversations.jsonl"), users)
    print(f"{len(dialogues)} dialogues by {sum(map(bool, users.values()))} users")
    shares = (args.seen_fraction, args.train_fraction)
    split = split_users(users, *shares, args.min_dialogues, args.seed)
    train, test, seen, unseen = split.values()
    require(seen and unseen, f"too few users with {args.min_dialogues} dialogues to split them")
    with written_whole(args.data / "prism_split_ids_50.json") as file:
        file.write_text(json.dumps(split, indent=4))
    train_or_test = {*train, *test}
    counts = Counter()
    used = 0
    with written_whole(args.data / "dialogues.jsonl") as temporary, open(temporary, "w") as file:
        for dialogue, row in dialogues.items():  # all of them: another split needs no new file
            row["turns"] = clean(row["turns"], counts)
            file.write(json.dumps(row) + "\n")
            if dialogue in train_or_test:
                used += sum(len(turn["rejected"]) for turn in row["turns"])
    print(f"{len(seen)} seen and {len(unseen)} unseen users with {used} pairs in")
    print(f"{len(train)} training and {len(test)} test dialogues")
    left_out = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
    print(f"left out in all dialogues: {left_out or 'nothing'}")
    print(f"both are in {args.data}; next: python PRISM/generate-prism-embeddings.py")


if __name__ == "__main__":
    start(main)
