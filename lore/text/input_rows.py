"""The rows that people bring, one JSON object a line:

    {"user_id": "ann", "prompt": "..", "chosen": "..", "rejected": ".."}      a comparison
    {"prompt": "..", "response": ".."}                                     a reply
    {"prompt": "..", "candidates": ["..", ".."]}                           replies to choose among

`messages`, a list of {role, content}, may stand in place of `prompt`. chosen and rejected may be
such lists too: replies to the prompt, or whole conversations, whose common beginning it then is.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from lore.common import InputError
from lore.text.conversations import SURROGATE, read_rows, require_text
from lore.upstream_values import as_list, content_key, whole_number

LISTS = ("prompt", "messages", "chosen", "rejected", "response", "candidates")  # columns, may be
SIDES = {"train": "train"} | dict.fromkeys(("test", "validation", "valid", "eval"), "test")


class Judgement(NamedTuple):
    """What one person preferred to what."""

    place: str  # file and line
    user_id: str
    prompt_id: str  # as given, else a hash of the prompt
    side: str | None  # train, test, or not said
    chosen: list  # conversation
    rejected: list


def rows_of(path):
    """Yield (place, row) of a file, as JSON has it. InputError: it is missing, or what JSON cannot say."""
    if not Path(path).is_file():
        raise InputError(f"{path} is no file")
    table = Path(path).suffix.lower() == ".csv"
    for place, row in read_rows(path):
        found = {}
        for name, value in row.items():
            value = listed(value) if table and name in LISTS else value
            found[name] = in_json(value, f"{place}, {name}")
        yield place, found


def listed(text):
    """The list that a cell of a CSV file holds as JSON, of messages or replies; else the cell."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else text
    except ValueError:
        return text
    return value if all(isinstance(one, str | list | dict) for one in value) else text


def in_json(value, where):
    """A value as JSON has it; NaN, which tables have for nothing, is null. InputError: it has no such."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        if SURROGATE.search(value):
            raise InputError(f"{where}: half a character (a lone surrogate)")
        return value
    if isinstance(value, dict):
        return {str(name): in_json(one, where) for name, one in value.items()}
    if as_list(value) is not None:
        return [in_json(one, where) for one in as_list(value)]
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{where}: infinity, which JSON has not")
    if value != value or str(value) in ("NaT", "<NA>"):
        return None
    if isinstance(value, float):
        return value
    if hasattr(value, "item"):  # of NumPy
        return in_json(value.item(), where)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise InputError(f"{where}: a {type(value).__name__}, which JSON has not")


def read_judgements(path):
    """The Judgements of a file. InputError, with file and line: see `judgement`; no row at all."""
    found = [judgement(place, row) for place, row in rows_of(path)]
    if not found:
        raise InputError(f"{path} holds no comparison")
    return found


def first_times(judgements):
    """Numbers of the judgements that were not there before; says how many are there again."""
    first = {}
    for number, one in enumerate(judgements):
        first.setdefault(content_key([one.user_id, one.chosen, one.rejected]), number)
    print(f"left out: {len(judgements) - len(first)} x the same judgement again")
    return [*first.values()]


def judgement(place, row):
    """The Judgement of a row. InputError: no person, no text, two replies that are one."""
    user = identifier(place, row, "user_id")
    if user is None:
        raise InputError(f"{place}: no user_id")
    chosen, rejected = pair_of(place, row)
    prompt = identifier(place, row, "prompt_id")
    if prompt is None:
        prompt = text_hash(common_start(chosen, rejected))
    side = row.get("split")
    if side is not None and (not isinstance(side, str) or side not in SIDES):
        raise InputError(f"{place}: split is {side!r}, not one of {', '.join(SIDES)}")
    return Judgement(place, user, prompt, SIDES.get(side), chosen, rejected)


def pair_of(place, row):
    """(chosen, rejected) of a row, as conversations."""
    chosen = conversation_of(place, row, "chosen")
    rejected = conversation_of(place, row, "rejected")
    if chosen == rejected:
        raise InputError(f"{place}: chosen and rejected are the same")
    if not common_start(chosen, rejected):
        raise InputError(f"{place}: chosen and rejected have no prompt in common")
    return chosen, rejected


def reply_of(place, row):
    """The conversation of a row {prompt | messages, response}, or of messages that end in a reply."""
    if row.get("response") is None and row.get("messages") is not None:
        return finished(place, messages_of(place, row["messages"], "messages"), "messages")
    return conversation_of(place, row, "response")


def candidates_of(place, row):
    """The conversations of a row {prompt | messages, candidates}."""
    candidates = as_list(row.get("candidates"))
    if not candidates:
        raise InputError(f"{place}: no candidates")
    found = []
    for number in range(len(candidates)):
        name = f"candidates[{number}]"
        found.append(conversation_of(place, {**row, name: candidates[number]}, name))
    return found


# ------------------------------------------------------------------------------ conversations ---


def conversation_of(place, row, name):
    """Prompt and reply of a row; `name` is the column of the reply, a text or a list of messages."""
    prompt = prompt_of(place, row)
    reply = row.get(name)
    if isinstance(reply, str):
        if prompt is None:
            raise InputError(f"{place}: {name} is a text, so a prompt or messages must be there")
        return finished(place, [*prompt, {"role": "assistant", "content": reply}], name)
    messages = messages_of(place, reply, name)
    if prompt is None or messages[: len(prompt)] == prompt:
        return finished(place, messages, name)
    if messages[0]["role"] != "assistant":
        raise InputError(f"{place}: {name} begins with another prompt than the row's")
    return finished(place, prompt + messages, name)


def prompt_of(place, row):
    """What stands before the reply, as messages; None where the row does not say it."""
    given = [name for name in ("prompt", "messages") if row.get(name) is not None]
    if len(given) == 2:
        raise InputError(f"{place}: both prompt and messages")
    if not given:
        return None
    value = row[given[0]]
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return messages_of(place, value, given[0])


def messages_of(place, value, name):
    """A list of messages with role and content alone. InputError: something else."""
    messages = as_list(value)
    if not messages:
        kind = "nothing" if value is None or messages == [] else type(value).__name__
        raise InputError(f"{place}: {name} is {kind}, neither a text nor a list of messages")
    found = []
    for message in messages:
        if not (isinstance(message, dict) and {"role", "content"} <= message.keys()):
            raise InputError(f"{place}: {name} holds {str(message)[:60]!r}, no role and content")
        role = message["role"]
        if not role or not isinstance(role, str):
            raise InputError(f"{place}: {name} has a role {role!r}")
        found.append({"role": role, "content": message["content"]})
    try:
        require_text(found)
    except InputError as error:
        raise InputError(f"{place}, {name}: {error}") from error
    return found


def finished(place, conversation, name):
    """The conversation, if it has a prompt and ends in a reply."""
    if conversation[-1]["role"] != "assistant" or not conversation[-1]["content"].strip():
        raise InputError(f"{place}: {name} does not end in a reply, or in an empty one")
    if len(conversation) < 2:
        raise InputError(f"{place}: {name} has no prompt before it")
    try:
        require_text(conversation)
    except InputError as error:
        raise InputError(f"{place}, {name}: {error}") from error
    return conversation


def common_start(one, other):
    """The messages that two conversations begin with in common."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return one[:same]


# ---------------------------------------------------------------------------------------- ids ---


def identifier(place, row, name):
    """An id as text: 7, 7.0 and "7" are one. None where there is none. InputError: something else."""
    value = row.get(name)
    if value is None or value != value:  # NaN is what tables have for nothing
        return None
    number = whole_number(value)
    text = str(value) if number is None else str(number)
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)  # 7.0 of a table that holds numbers as text
    if (not isinstance(value, str) and number is None) or not text.strip():
        raise InputError(f"{place}: {name} is {value!r}, neither a text nor a whole number")
    return text


def text_hash(messages):
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
