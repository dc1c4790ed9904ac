"""Texts that are one in two spellings, and texts that were lists of messages."""

import ast
import json
import re
import unicodedata
import warnings

from lore.text.conversations import spoken

OPENING = r"(?:(?:np\.|numpy\.)?array|(?:collections\.)?OrderedDict|dict)?\s*[\[(]\s*"
BEGINS = re.compile(rf"""\s*["']?\s*(?:{OPENING})*(?:\{{|["'](?:role|from|content)["']\s*,)""")
ENDS = ("]", ")", "}", '"', "'")
NUMPY = re.compile(r"^(?:np\.|numpy\.)?array\s*\((.*?)(?:,\s*dtype=\w+)?\s*\)$", re.DOTALL)
WITHOUT_COMMA = re.compile(r"\}\s+\{")  # as NumPy prints a list of objects
SPEAKERS = (
    "user", "assistant", "system", "developer", "tool", "function", "ipython", "human", "gpt", "bot", "chatbot",
    "model", "ai", "prompter",
)  # fmt: skip
SPEAKS = re.compile(  # also as databases print it, without quotes
    rf"""[{{,\s"'](role|from)["']?\s*[:=,]\s*(<[\w.]+:\s*)?["']?({"|".join(SPEAKERS)})["']?>?\s*[,}})]""",
    re.IGNORECASE,
)
SPEAKS_CUT = re.compile(r"""["'](role|from)["']\s*[:=,]\s*["']?\w*\Z""")  # in the middle of it
OBJECTS = re.compile(r"\s*\[?\s*\w*Message\(\w+=")  # as clients of language models print theirs
SHAPES = (("role", "content"), ("from", "value"))  # keys of a message, in two conventions


def one_spelling(text):
    """A text in Unicode's one form, without what cannot be seen and without surplus spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return " ".join(text.split())


def as_read(conversation):
    """Its messages as text, the reply without kinds of line ends and spaces where lines end."""
    *prompt, reply = map(spoken, conversation)
    lines = unicodedata.normalize("NFC", reply["content"]).strip().splitlines()
    return json.dumps([*prompt, reply | {"content": "\n".join(map(str.rstrip, lines))}])


def as_asked(conversation):
    """The same with what stands before the reply in one spelling, as prompts are told apart."""
    *prompt, reply = conversation
    asked = []
    for message in prompt:
        asked.append(message | {"content": one_spelling(message["content"]).casefold()})
    return as_read([*asked, reply])


def is_list_of_messages(value):
    """Whether it is one, or the list of the parts of a message's content."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(is_message(item) or is_part(item) or is_list_of_messages(item) for item in value)


def is_message(value):
    if not isinstance(value, dict):
        return False
    for speaker, said in SHAPES:
        speaks = str(value.get(speaker)).lower() in SPEAKERS
        if speaks and said in value and isinstance(value[said], str | list | tuple | None):
            return True
    return False


def is_part(value):
    return isinstance(value, dict) and value.get("type") == "text" and "text" in value


def holds_messages(text):
    """Whether a text is a message, a list of them, or an object of such lists alone, as JSON or as
    Python or NumPy print it."""
    if OBJECTS.match(text) and text.rstrip().endswith(ENDS):
        return True
    if not BEGINS.match(text):
        return False
    speaks = SPEAKS.search(text) is not None and ("content" in text or "value" in text)
    if not text.rstrip().endswith(ENDS):  # cut off, as the cells of a spreadsheet are?
        is_alone = text.lstrip().startswith("{") and "[" not in text
        speaks = speaks or (SPEAKS_CUT.search(text) is not None and "content" in text)
        return speaks and ("}" if is_alone else "}]") not in text
    value = parsed(text.strip())
    if isinstance(value, str):
        return value != text and holds_messages(value)
    if value is None:
        return speaks
    lists = [*value.values()] if isinstance(value, dict) else [value]
    return is_message(value) or (bool(lists) and all(map(is_list_of_messages, lists)))


def parsed(text):
    """The value that a text is as JSON, or as Python or NumPy print it; None where it is neither."""
    bare = NUMPY.sub(r"\1", text)
    printed = (bare, WITHOUT_COMMA.sub("}, {", bare))
    with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
        for read, form in ((json.loads, text), *((ast.literal_eval, form) for form in printed)):
            try:
                return read(form)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return None
