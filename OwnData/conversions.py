"""Layouts of other data sets: a function each, from a row to what it comes to.

A row comes to a list of comparisons, as prepare.py reads them, of Grades, and of texts: why a judgement is
left out. InputError: what may be meant in two ways, or is not there; convert.py says of which row. Its head
says what each layout has.
"""

import json
import re
from typing import NamedTuple

from lore.common import InputError, require
from lore.text.input_rows import COLUMNS, NO_IDS
from lore.text.json_text import is_nothing, listed
from lore.text.layouts import LISTS, SCORES, VOTES, as_text, sides_of, there
from lore.text.spellings import is_list_of_messages, one_spelling
from lore.upstream_values import as_list, finite_number, whole_number

PROMPTS = ("instruction", "question", "query", "input")
REPLIES = ("completion", "answer", "output", "reply", "text")
NAMES = (  # what --columns may name
    *COLUMNS, "response_a", "response_b", "winner", "response", "responses", "score", "scores", "rank", "ranks",
    "order",
)  # fmt: skip

TIE = "a tie"  # why a judgement is left out
EMPTY = "an empty prompt or reply"
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d{1,2}")

# winners without case, spaces and signs; of ties the beginnings: "tie (bothbad)", "both are good", "Equally bad"
TIES = (
    "tie", "both", "neither", "equal", "nopreference", "draw", "same", "aboutthesame", "similar", "neutral", "a=b",
)  # fmt: skip
FIRST = {
    "a", "left", "first", "a>b", "a>>b", "b<a", "modela", "assistanta", "aisclearlybetter", "aisslightlybetter",
}  # fmt: skip
SECOND = {
    "b", "right", "second", "b>a", "b>>a", "a<b", "modelb", "assistantb", "bisclearlybetter", "bisslightlybetter",
}  # fmt: skip
SIGNS = re.compile(r"[^\w<>=]|_")  # that mean nothing: spaces, brackets, dashes


class Grade(NamedTuple):
    """What a person thinks of a reply by itself."""

    group: object  # grades of one group are compared
    reply: object  # a text or messages
    value: float  # the higher, the better
    beside: dict  # the other fields of a comparison


# ------------------------------------------------------------------------------------------ layouts ---


def pairs(row, args):
    return [{name: row[name] for name in COLUMNS if name in row}]


def arena(row, args):
    if "judge" in row and "user_id" not in row:
        row = row | {"user_id": row["judge"]}
    beside = fields_beside(row)
    names = sides_of(row)
    require(names, f"no two replies, as response_a and response_b; name them with --columns; {there(row)}")
    vote = vote_of(winner_of(row, args), names, row, args)
    texts = [talk(row[name]) for name in names]
    is_turns = "winner_model_a" in row and as_list(listed(texts[0]))
    require(not is_turns, f"{names[0]} is a list of turns; give lists of role and content")
    if not is_nothing(row.get("turn")):
        beside["turn"] = turn = whole_number(finite_number(row["turn"]))
        require(turn, f"turn is {row['turn']!r}, no number of a turn")
        texts = [text[: 2 * turn] if as_list(text) else text for text in texts]
    if isinstance(texts[0], str):
        beside |= prompt_of(row, args)
    elif all(map(is_exchange, texts)) and texts[0][0] == texts[1][0]:
        beside["prompt"] = texts[0][0]["content"]
        texts = [reply["content"] for _, reply in texts]
    if vote not in ("a", "b"):
        return [TIE if vote == "tie" else "no vote"]
    chosen, rejected = texts if vote == "a" else reversed(texts)
    return [beside | {"chosen": chosen, "rejected": rejected}]


def ratings(row, args):
    return grades_of(row, args, "score", SCORES, 1)


def rankings(row, args):
    return grades_of(row, args, "rank", (), -1)


def wide(row, args):
    others = [name for name in row if name not in NAMES]
    require(args.annotators, f"which columns are people? --annotators NAME ..; {there(others)}")
    outcomes = []
    for name in dict.fromkeys(args.annotators):
        require(name in row, f"no column {name}, which --annotators names; {there(row)}")
        of_person = {**row, "user_id": name, "winner": row[name], "score": row[name]}
        judged = arena if sides_of(row) else ratings
        outcomes += judged(of_person, args)
    return outcomes


# -------------------------------------------------------------------------------------------- votes ---


def winner_of(row, args):
    """What a row says of the winner, in one column or in three of 0 and 1."""
    if "winner" in row:
        return row["winner"]
    sides = [side for side in ("model_a", "model_b", "tie") if f"winner_{side}" in row]
    if sides:
        return next((side for side in sides if number_of(row[f"winner_{side}"]) == 1), None)
    return row[column(row, "winner", VOTES, args)]


def vote_of(value, names, row, args):
    """a, b, tie, or None where there is none. InputError: a label that may be anything."""
    while as_list(value) and len(value) == 1:  # as Label Studio's short export has it
        (value,) = value
    value = value.get("selected") if isinstance(value, dict) else value
    if is_nothing(value) or is_missing(value):
        return None
    label = plain(value)
    for side in args.votes:
        vote, sign, name = side.partition("=")
        require(sign and vote in ("a", "b", "tie"), f"--votes {side}: write a=LABEL, b=LABEL or tie=LABEL")
        if label == plain(name):
            return vote
    models = [row.get("model_a"), row.get("model_b")]
    for vote, name, model, labels in zip("ab", names, models, (FIRST, SECOND)):
        by_model = value == model and models[0] != models[1]
        by_number = label.isdigit() and label == name[-1]  # 1 of response_1 and response_2
        if label in labels or label == plain(name) or by_model or by_number:
            return vote
    if label.startswith(TIES):
        return "tie"
    how = "say it, as --votes a=LABEL b=LABEL tie=LABEL"
    raise InputError(f"the winner is {value!r}: which reply is that? {how}")


def plain(label):
    """A label without case, spaces and signs; whole numbers alike whatever their type."""
    number = whole_number(finite_number(label))
    return SIGNS.sub("", str(label)).casefold() if number is None else str(number)


# ------------------------------------------------------------------------------------------- grades ---


def grades_of(row, args, name, others, sign):
    """A Grade for each reply, or why there is none: one in the row, or a list, with the values in or beside it."""
    beside = fields_beside(row) | prompt_of(row, args)
    replies = replies_listed(row)
    if replies == []:
        return [EMPTY]
    items = replies or [row]
    if all(isinstance(item, dict) for item in items):
        names = (*REPLIES, "content") if replies else REPLIES
        texts = [item[column(item, "response", names, args)] for item in items]
        values = [item[column(item, name, others, args)] for item in items]
    else:
        texts = replies
        values = values_beside(row, name, replies, args)
    # a rank says nothing of another list
    group = object() if replies and sign < 0 else group_of(beside)
    outcomes = []
    for text, value in zip(texts, values):
        number = number_of(value)
        if number is None:
            require(is_nothing(value) or is_missing(value), f"{value!r} is no number")
            outcomes.append("no score or rank")
        elif is_nothing(text) or is_nothing(beside.get("prompt", "?")):
            outcomes.append(EMPTY)
        else:
            outcomes.append(Grade(group, text, sign * number, beside))
    return outcomes


def values_beside(row, name, replies, args):
    """The scores or ranks of several replies, of which an order gives the numbers or the texts, best first."""
    if name == "rank" and "order" in row:
        order = as_list(listed(row["order"])) or []
        numbers = [whole_number(place) for place in order]
        for names in (replies, [*range(len(replies))], [*range(1, len(replies) + 1)]):
            said = order if names is replies else numbers
            if None not in said and sorted(map(str, said)) == sorted(map(str, names)):
                return [said.index(reply) for reply in names]
        raise InputError(f"the order {row['order']!r} is not of the replies")
    if name == "rank":
        asked = "no ranks (of each reply, 1 the best) and no order (their numbers, best first); name one with --columns"
        require("ranks" in row, f"{asked}; {there(row)}")
    values = as_list(listed(row[column(row, f"{name}s", ("ratings",), args)]))
    counts = f"{len(values or ())} {name}s for {len(replies)} replies"
    require(values and len(values) == len(replies), counts)
    return values


def number_of(value):
    """The number that a cell says, a thumb up or down included; None: none."""
    text = str(value).strip()
    if text.casefold() in ("true", "false"):
        return int(text.casefold() == "true")
    return finite_number(text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else value)


def is_missing(value):
    """Whether it is what tables write for a missing one."""
    return str(value).strip().casefold() in NO_IDS


def group_of(beside):
    """What grades of one group have in common: person, prompt, side of a split."""
    number = whole_number(beside["user_id"])
    person = one_spelling(str(beside["user_id"] if number is None else number))
    prompt = beside.get("prompt")
    prompt = one_spelling(prompt).casefold() if isinstance(prompt, str) else prompt
    return json.dumps([person, prompt, beside.get("messages"), beside.get("split")])


# ------------------------------------------------------------------------------------------ columns ---


def fields_beside(row):
    """What a comparison has beside its texts. InputError: it is nobody's."""
    hint = "If a column says who judged, --columns user_id=THAT"
    require("user_id" in row, f"no person in it: nothing personal can be learnt. {hint}; {there(row)}")
    beside = {"user_id": row["user_id"]}
    prompt_id = row.get("prompt_id", row.get("question_id"))
    for name, value in (("prompt_id", prompt_id), ("split", row.get("split"))):
        if not is_nothing(value):
            beside[name] = value
    return beside


def prompt_of(row, args):
    """{prompt} or {messages} of a row. InputError: neither, or two that differ."""
    messages = talk(row.get("messages")) or talk(row.get("context"))
    if not as_list(messages):
        name = column(row, "prompt", PROMPTS, args)
        return {"prompt": talk(row[name])}
    bare = "what stands before the reply is no list of role and content"
    require(is_list_of_messages(messages), bare)
    shown = row.get("prompt")
    same = is_nothing(shown) or shown == as_text(messages)
    require(same, "both prompt and messages, which says something else")
    return {"messages": messages}


def is_exchange(messages):
    """Whether it is a prompt and a reply, and all that they say is text."""
    roles = [message.get("role") for message in messages] if is_list_of_messages(messages) else []
    return roles == ["user", "assistant"] and all(len(message) == 2 for message in messages)


def replies_listed(row):
    """The list of several replies of a row; None: it has one reply. InputError: a list that became a text."""
    for name in LISTS:
        replies = listed(row.get(name))
        if as_list(replies) is not None:
            return replies
        is_text = isinstance(replies, str) and "response" not in row and name == "responses"
        require(not is_text, f"{name} is no list; a table's cell holds one as JSON")
    return None


def column(row, name, others, args):
    """The name of a column that may be called otherwise. InputError: it is missing, or may be several."""
    if name in row:
        return name
    candidates = [other for other in others if other in row]
    if len(candidates) != 1:
        which = f"which is it of {', '.join(candidates)}?" if candidates else there(row)
        raise InputError(f"no {name}; {which}; name it with --columns {name}=THEIRS")
    args.read_as[name] = candidates[0]
    return candidates[0]


def talk(value):
    """Messages that a table's cell holds as JSON; any other text as it is."""
    messages = listed(value)
    return messages if is_list_of_messages(messages) else value
