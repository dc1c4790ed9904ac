"""Texts that are one in two spellings, and texts that were lists of messages."""

import json
import re
import unicodedata

from lore.text.conversations import spoken

SPEAKERS = (
    "user", "assistant", "system", "developer", "tool", "function", "ipython", "human", "gpt", "bot", "chatbot",
    "model", "ai", "prompter",
)  # fmt: skip
QUOTES = r"""["'\\]*"""
IS = rf"{QUOTES}\s*[:=,]\s*{QUOTES}"  # between a key and its value
SPEAKS = rf"(role|from){IS}(<[\w.]+:\s*{QUOTES})?({'|'.join(SPEAKERS)})\b"
MESSAGES = re.compile(  # how they begin as JSON, Python, NumPy or a database print them
    rf"""\s*{QUOTES}(array\(|OrderedDict\(|{QUOTES}messages{IS}|\w*Message\(|[\s\[({{])+{QUOTES}((?<=[{{"'])|(?<=Message\())"""
    rf"""({SPEAKS}|(content|value){IS}.*?[\s,"']{SPEAKS}|(?<=\[{{")type{IS}text{IS}text|(?<=\[{{')type{IS}text{IS}text)""",
    re.IGNORECASE | re.DOTALL,
)
SAID = re.compile("content|value|text")
ENDS = ("]", ")", "}", '"', "'")


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
    return as_read([*folded(prompt), reply])


def folded(messages):
    """The messages, each text in one spelling and without case."""
    return [message | {"content": one_spelling(message["content"]).casefold()} for message in messages]


def is_list_of_messages(value):
    return isinstance(value, list | tuple) and bool(value) and all(map(is_message, value))


def is_message(value):
    if not isinstance(value, dict) or str(value.get("role")).lower() not in SPEAKERS:
        return False
    return "content" in value and isinstance(value["content"], str | list | tuple | None)


def holds_messages(text):
    """Whether a text is a message or a list of them, as JSON, Python, NumPy or databases print it."""
    if not MESSAGES.match(text) or not SAID.search(text):
        return False
    end = "}]" if "[" in text else "}"
    return text.rstrip().endswith(ENDS) or end not in text  # a cell of a spreadsheet may be cut off
