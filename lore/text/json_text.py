"""JSON: lists and lines of it that are larger than memory, a value at a time, and what other files hold as it."""

import gzip
import json
import math
import re
from contextlib import contextmanager
from decimal import Decimal
from uuid import UUID

from lore.common import InputError, require, written_whole
from lore.upstream_values import as_list

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it
DEEPEST = 100  # lists and objects within each other, in a field
READ_AT_ONCE = 2**20  # characters
SPACES = re.compile(r"[ \t\r\n\ufeff]*")
LONGEST_WORD = 12  # signs that may stand at the end of a piece and be none yet: -Infinity, \\u1234


def values_of_list(file):
    """Yield the values of a JSON list, a piece of it in memory at a time. ValueError: it is broken.

    file: a text, read up to behind the bracket.
    """
    decoder = json.JSONDecoder()
    text = ""
    place = 0
    before = "["  # the sign before this place
    while before != "]":
        try:
            end = SPACES.match(text, place).end()
            is_empty = before == "[" and text.startswith("]", end)
            if not is_empty:
                value, end = decoder.raw_decode(text, end)
                end = SPACES.match(text, end).end()
            sign = text[end : end + 1]
            if sign not in (",", "]"):
                raise json.JSONDecodeError("no comma behind it", text, end)
        except json.JSONDecodeError as error:
            is_cut = error.msg.startswith("Unterminated") or error.pos > len(text) - LONGEST_WORD
            more = is_cut and file.read(max(READ_AT_ONCE, len(text) - place))
            if not more:
                raise
            text = text[place:] + more
            place = 0
        else:
            if not is_empty:
                yield value
            before = sign
            place = end + 1
    if SPACES.sub("", text[place:] + file.read()):
        raise ValueError("more follows the list")


@contextmanager
def written_rows(path):
    """write(fields), for JSON lines that are there whole in the end, or not at all; gzip by the name."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with written_whole(path) as temporary, opened(temporary, "wt", encoding="utf-8") as file:

        def write(fields):
            file.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")

        yield write


def in_json(value, where, depth=0):
    """A value as JSON has it; NaN, which tables have for nothing, is null. InputError: it has no such."""
    require(depth <= DEEPEST, f"{where}: lists and objects more than {DEEPEST} deep")
    if isinstance(value, dict):
        return {str(name): in_json(inner, where, depth + 1) for name, inner in value.items()}
    items = as_list(value)
    if items is not None:
        return [in_json(item, where, depth + 1) for item in items]
    if hasattr(value, "item"):  # of NumPy
        value = value.item()
    if isinstance(value, str):
        require(not SURROGATE.search(value), f"{where}: half a character (a lone surrogate)")
    elif str(value) in ("NaT", "<NA>") or value != value:
        return None
    elif isinstance(value, float | Decimal):
        require(abs(value) < math.inf, f"{where}: infinity, which JSON has not")
        if isinstance(value, Decimal):
            return int(value) if value == int(value) else str(value)
    elif hasattr(value, "isoformat"):
        return value.isoformat()
    elif isinstance(value, UUID):
        return str(value)
    elif value is not None and not isinstance(value, bool | int):
        raise InputError(f"{where}: a {type(value).__name__}, which JSON has not")
    return value


def is_nothing(value):
    """Whether a field says nothing: null, NaN, an empty cell or list, spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or value in ([], {})


def listed(value):
    """A list that a table's cell holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
