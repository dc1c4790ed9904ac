"""Other ways to write one comparison that are read as they are, and names of columns elsewhere.

    {"context": [{"role": "user", ..}], "chosen": {"role": "assistant", ..}, ..}    SynthesizeMe
    {"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: ..", ..}    HH-RLHF

What --columns says of names is read here as well.
"""

import re

from lore.common import InputError, require
from lore.text.spellings import is_list_of_messages, one_spelling
from lore.upstream_values import as_list

REPLIES = ("chosen", "rejected", "response")
DIALOGUE = re.compile(r"\s*Human:.*?\r?\n\r?\nAssistant:", re.DOTALL)
TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
SHOWN = 12  # names of columns in an error

WORDS = (
    "response", "conversation", "completion", "answer", "output", "option", "reply", "summary", "text", "human_ref",
)  # fmt: skip
ENDINGS = (("_a", "_b"), ("_A", "_B"), ("_1", "_2"), ("1", "2"), ("-1", "-2"), ("_0", "_1"))
VOTES = (  # names of a winner
    "vote", "preference", "overall_preference", "preferred", "choice", "label", "labels", "verdict",
    "better_response_id",
)  # fmt: skip
SCORES = ("score", "rating", "label", "overall_score", "helpfulness", "stars", "grade")
LISTS = ("responses", "completions", "answers", "candidates", "outputs", "replies")
ELSEWHERE = "name yours with --columns user_id=THEIRS .., or turn the file by OwnData/convert.py (--help)"


# -------------------------------------------------------------------------------- read as they are ---


def as_messages(row):
    """The same comparison, what is said before it and dialogues that are one text as lists of messages."""
    if is_list_of_messages(row.get("context")):
        row = row | with_assistants(row)
    prompt = row.get("prompt")
    if isinstance(prompt, str) and DIALOGUE.match(prompt):
        *asked, last = dialogue(prompt)
        if last == {"role": "assistant", "content": ""}:
            row = row | {"prompt": asked}
    for name in REPLIES:
        text = row.get(name)
        if isinstance(text, str) and DIALOGUE.match(text) and begins_with(dialogue(text), row):
            row = row | {name: dialogue(text)}
    return row


def with_assistants(row):
    """Context and replies as lists of messages, in which a model is called an assistant."""
    lists = {}
    for name in ("context", *REPLIES):
        value = row.get(name)
        for message in [value] if isinstance(value, dict) else as_list(value) or ():
            if isinstance(message, dict) and message.get("role") == "model":
                message = message | {"role": "assistant"}
            lists.setdefault(name, []).append(message)
    return lists


def dialogue(text):
    """Messages of a text of turns, "Human: .." and "Assistant: ..", without the spaces around them."""
    _, *parts = TURN.split(text)
    turns = zip(parts[::2], parts[1::2])
    return [{"role": SPEAKERS[speaker], "content": said.strip()} for speaker, said in turns]


def as_text(messages):
    """What stands before a reply as one text, for people to read: a question by itself, a dialogue with its roles."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def begins_with(messages, row):
    """Whether a dialogue begins with the row's prompt, or the row has none."""
    prompt = row.get("prompt") or row.get("messages") or row.get("context") or messages[0]["content"]
    return isinstance(prompt, str) and one_spelling(prompt) == one_spelling(messages[0]["content"])


# ------------------------------------------------------------------------------------------ columns ---


def renaming(columns, known):
    """{ours: theirs} of settings OURS=THEIRS. InputError: no such setting, a name unknown here, or one twice."""
    theirs = {}
    for setting in columns:
        ours, sign, name = setting.partition("=")
        require(sign and name, f"--columns {setting}: write OURS=THEIRS, as user_id=annotator")
        require(ours in known, f"--columns {setting}: {ours} is none of {', '.join(known)}")
        for again in {ours} & theirs.keys() | {name} & {*theirs.values()}:
            raise InputError(f"--columns: {again} stands there twice")
        theirs[ours] = name
    return theirs


def renamed(cells, theirs):
    """A row whose columns have the names here; a column that had such a name for something else is dropped."""
    if not theirs:
        return cells
    taken = {*theirs, *theirs.values()}
    row = {ours: cells.get(name) for ours, name in theirs.items()}
    for name, value in cells.items():
        if name not in taken:
            row[name] = value
    return row


def opened(rows, inner):
    """The same rows with the fields of a column `inner`, where that holds an object, among their own."""
    for file_and_line, row in rows:
        if isinstance(row.get(inner), dict):
            row = {**row}
            row = row.pop(inner) | row
        yield file_and_line, row


def there(row):
    """The names of its columns, for an error."""
    names = [*row]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there are {', '.join(names[:SHOWN])}{more}"


def sides_of(row):
    """The names of the columns with the two replies of a row that names no winner by column; None: it has none."""
    for word in WORDS:
        for first, second in ENDINGS:
            if word + first in row and word + second in row:
                return word + first, word + second
    return ("left", "right") if "left" in row and "right" in row else None
