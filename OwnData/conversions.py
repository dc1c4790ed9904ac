"""Layouts of other data sets: a function each, from a row to what it comes to.

A row comes to a list of comparisons, as prepare.py reads them, of Grades, and of texts: why a judgement is
left out. InputError: what may be meant in two ways, or is not there. The head of convert.py says what
each layout has.
"""

import json
import re
from typing import NamedTuple

from votes import vote_of, winner_of

from lore.common import InputError, require
from lore.text.conversations import exchange
from lore.text.input_rows import COLUMNS, NO_IDS
from lore.text.json_text import is_nothing
from lore.text.layouts import LISTS, SCORES, as_text, sides_of, there
from lore.text.spellings import is_list_of_messages, one_spelling
from lore.upstream_values import as_list, finite_number, whole_number

PROMPTS = ("instruction", "question", "query", "input")
REPLIES = ("completion", "answer", "output", "reply", "text")
MORE = (
    "response_a", "response_b", "winner", "response", "responses", "score", "scores", "rank", "ranks", "order",
)  # fmt: skip
NAMES = (*COLUMNS, *MORE)  # what --columns may name

THIRD = {"a": "c", "A": "C", "0": "2", "1": "3"}  # how the name of a third reply ends
TIE = "a tie"  # why a judgement is left out
EMPTY = "an empty prompt or reply"
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d{1,2}")


class Grade(NamedTuple):
    """What a person thinks of a reply by itself."""

    file_and_line: str
    group: str  # grades of one group are compared
    reply: object  # a text or messages
    value: float  # the higher, the better
    beside: dict  # the other fields of a comparison


# ------------------------------------------------------------------------------------------ layouts ---


def pairs(file_and_line, row, args):
    require_people(file_and_line, row)
    return [{name: row[name] for name in COLUMNS if name in row}]


def arena(file_and_line, row, args):
    if "judge" in row and "user_id" not in row:
        row = row | {"user_id": row["judge"]}
    require_people(file_and_line, row)
    names = replies_of(file_and_line, row)
    third = names[0][:-1] + THIRD.get(names[0][-1], "")
    require(
        is_nothing(row.get(third)), f"{file_and_line}: {third} is a third reply, which --from rankings reads"
    )
    vote = vote_of(file_and_line, winner_of(row), names, row, args)
    texts = [talk(row[name]) for name in names]
    beside = fields_beside(row)
    if "turn" in row and not is_nothing(row["turn"]):
        beside["turn"] = turn = whole_number(finite_number(row["turn"]))
        require(turn, f"{file_and_line}: turn is {row['turn']!r}, no number of a turn")
        texts = [text[: 2 * turn] if as_list(text) else text for text in texts]
    if "winner_model_a" in row and as_list(listed(texts[0])):
        texts = [kaggle_talk(file_and_line, row.get("prompt"), text) for text in texts]
    if isinstance(texts[0], str):
        beside |= prompt_of(file_and_line, row, args)
    elif is_exchange(texts[0]) and is_exchange(texts[1]) and texts[0][0] == texts[1][0]:
        beside["prompt"] = texts[0][0]["content"]
        texts = [reply["content"] for _, reply in texts]
    comparison = voted(beside, texts, vote)
    models = [row.get("model_a"), row.get("model_b")]
    if isinstance(comparison, dict) and None not in models:
        chosen, rejected = models if vote == "a" else reversed(models)
        comparison |= {"chosen_model": chosen, "rejected_model": rejected}
    return [comparison]


def ratings(file_and_line, row, args):
    require_people(file_and_line, row)
    beside = fields_beside(row) | prompt_of(file_and_line, row, args)
    group = group_of(beside)
    replies = replies_listed(row)
    if replies is None:
        reply = row[column(file_and_line, row, "response", REPLIES, args)]
        score = row[column(file_and_line, row, "score", SCORES, args)]
        return [graded(file_and_line, group, reply, score, 1, beside)]
    scores = listed(row.get("scores") or row.get("ratings"))
    return graded_list(file_and_line, group, replies, scores, "score", 1, beside, args)


def rankings(file_and_line, row, args):
    require_people(file_and_line, row)
    beside = fields_beside(row) | prompt_of(file_and_line, row, args)
    replies = replies_listed(row)
    if replies is None:
        reply = row[column(file_and_line, row, "response", REPLIES, args)]
        rank = row[column(file_and_line, row, "rank", (), args)]
        return [graded(file_and_line, group_of(beside), reply, rank, -1, beside)]
    ranks = listed(row.get("ranks"))
    if "order" in row or "ranking" in row:
        ranks = ranks_of_order(file_and_line, row, replies)
    group = json.dumps([file_and_line, group_of(beside)])  # a rank says nothing of another list
    return graded_list(file_and_line, group, replies, ranks, "rank", -1, beside, args)


def wide(file_and_line, row, args):
    others = [name for name in row if name not in NAMES]
    require(
        args.annotators, f"{file_and_line}: which columns are people? --annotators NAME ..; {there(others)}"
    )
    outcomes = []
    for name in args.annotators:
        require(name in row, f"{file_and_line}: no column {name}, which --annotators names; {there(row)}")
        of_person = {**row, "user_id": name, "winner": row[name], "score": row[name]}
        judged = arena if sides_of(row) else ratings
        outcomes += judged(file_and_line, of_person, args)
    return outcomes


# -------------------------------------------------------------------------------------------- votes ---


def voted(beside, texts, vote):
    """The comparison of a vote for "a" or "b", or why there is none."""
    if vote not in ("a", "b"):
        return TIE if vote == "tie" else "no vote"
    chosen, rejected = texts if vote == "a" else reversed(texts)
    return beside | {"chosen": chosen, "rejected": rejected}


# ------------------------------------------------------------------------------------------- grades ---


def graded(file_and_line, group, reply, value, sign, beside):
    """A Grade, or why there is none."""
    if isinstance(value, bool):
        value = int(value)  # a thumb, up or down
    if isinstance(value, str) and value.strip().casefold() in NO_IDS:  # what tables write for a missing one
        value = None
    if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip()):
        value = value.replace(",", ".")
    number = finite_number(value)
    if number is None:
        require(is_nothing(value), f"{file_and_line}: {value!r} is no number")
        return "no score or rank"
    if is_nothing(reply) or is_nothing(beside.get("prompt", "?")):
        return EMPTY
    return Grade(file_and_line, group, reply, sign * number, beside)


def graded_list(file_and_line, group, replies, values, name, sign, beside, args):
    """A Grade for each of several replies, whose values stand beside them or in them."""
    if all(isinstance(reply, dict) for reply in replies):
        texts = []
        values = []
        for reply in replies:
            texts.append(reply[column(file_and_line, reply, "response", (*REPLIES, "content"), args)])
            values.append(reply[column(file_and_line, reply, name, SCORES if name == "score" else (), args)])
        replies = texts
    values = as_list(values)
    require(values, f"{file_and_line}: no list of {name}s for the {len(replies)} replies")
    counts = f"{len(values)} {name}s for {len(replies)} replies"
    require(len(values) == len(replies), f"{file_and_line}: {counts}")
    outcomes = []
    for reply, value in zip(replies, values):
        outcomes.append(graded(file_and_line, group, reply, value, sign, beside))
    return outcomes


def ranks_of_order(file_and_line, row, replies):
    """The rank of each reply, of which an order gives the numbers or the texts, best first."""
    order = listed(row.get("order")) or listed(row.get("ranking"))
    require(as_list(order), f"{file_and_line}: the order is no list")
    places = [whole_number(finite_number(place)) for place in order]
    if None in places:
        named = sorted(map(str, order)) == sorted(map(str, replies))
        require(named, f"{file_and_line}: the order is not of the replies")
        return [order.index(reply) for reply in replies]
    asked = (
        "is it the rank of each reply (--columns ranks=ranking) or their numbers, best first (order=ranking)?"
    )
    require("order" in row, f"{file_and_line}: ranking: {asked}")
    first = min(places)
    numbers = [*range(first, first + len(replies))]
    require(
        first in (0, 1) and sorted(places) == numbers,
        f"{file_and_line}: the order {order} is not of the replies",
    )
    return [places.index(number) for number in numbers]


def group_of(beside):
    """What grades of one group have in common: person, prompt, side of a split."""
    number = whole_number(beside["user_id"])
    person = one_spelling(str(beside["user_id"] if number is None else number))
    prompt = beside.get("prompt")
    prompt = one_spelling(prompt).casefold() if isinstance(prompt, str) else prompt
    return json.dumps([person, prompt, beside.get("messages"), beside.get("split")])


# ------------------------------------------------------------------------------------------ columns ---


def require_people(file_and_line, row):
    if "user_id" not in row:
        text = "no person in it: nothing personal can be learnt. If a column says who judged, --columns user_id=THAT"
        raise InputError(f"{file_and_line}: {text}; {there(row)}")


def fields_beside(row):
    """What a comparison has beside its texts."""
    beside = {"user_id": row["user_id"]}
    prompt_id = row.get("prompt_id", row.get("question_id"))
    for name, value in (("prompt_id", prompt_id), ("split", row.get("split"))):
        if not is_nothing(value):
            beside[name] = value
    return beside


def prompt_of(file_and_line, row, args):
    """{prompt} or {messages} of a row. InputError: neither, or two that differ."""
    messages = talk(row.get("messages")) or talk(row.get("context"))
    if not as_list(messages):
        name = column(file_and_line, row, "prompt", PROMPTS, args)
        return {"prompt": talk(row[name])}
    shown = row.get("prompt")
    same = is_nothing(shown) or shown == as_text(messages)
    require(same, f"{file_and_line}: both prompt and messages, which says something else")
    return {"messages": messages}


def kaggle_talk(file_and_line, prompt, reply):
    """The messages of prompts and replies that are lists of texts in JSON, as in Kaggle's arena."""
    prompts = listed(prompt)
    replies = listed(reply)
    alike = as_list(prompts) and as_list(replies) and len(prompts) == len(replies)
    require(alike, f"{file_and_line}: prompt and replies are no lists of one length")
    messages = []
    for asked, said in zip(prompts, replies):
        messages += exchange(asked, said)
    return messages


def is_exchange(messages):
    """Whether it is a prompt and a reply, and all that they say is text."""
    if not isinstance(messages, list) or len(messages) != 2:
        return False
    for message, role in zip(messages, ("user", "assistant")):
        bare = isinstance(message, dict) and message.keys() == {"role", "content"}
        if not bare or message["role"] != role:
            return False
    return True


def replies_of(file_and_line, row):
    """The names of the columns with the two replies."""
    if "response_a" in row and "response_b" in row:
        return "response_a", "response_b"
    names = sides_of(row)
    wanted = "no two replies, as response_a and response_b; name them with --columns"
    require(names, f"{file_and_line}: {wanted}; {there(row)}")
    return names


def replies_listed(row):
    """The list of several replies of a row; None: it has one reply."""
    for name in LISTS:
        replies = listed(row.get(name))
        if as_list(replies):
            return replies
    return None


def column(file_and_line, row, name, others, args):
    """The name of a column that may be called otherwise. InputError: it is missing, or may be several."""
    if name in row:
        return name
    candidates = [other for other in others if other in row]
    if len(candidates) != 1:
        which = f"which is it of {', '.join(candidates)}?" if candidates else there(row)
        raise InputError(f"{file_and_line}: no {name}; {which}; name it with --columns {name}=THEIRS")
    args.read_as[name] = candidates[0]
    return candidates[0]


def talk(value):
    """Messages that a table's cell holds as JSON; any other text as it is."""
    messages = listed(value)
    return messages if is_list_of_messages(messages) else value


def listed(value):
    """A list that a table's cell holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
