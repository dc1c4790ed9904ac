"""The rows that people bring, one JSON object a line:

    {"user_id": "ann", "prompt": "..", "chosen": "..", "rejected": ".."}      a comparison
    {"prompt": "..", "response": ".."}                                     a reply
    {"prompt": "..", "candidates": ["..", ".."]}                           replies to choose among
    {"user_id": "ann", "prompt": "..", "candidates": ["..", ".."], "choice": 1}    a comparison of two

`messages`, a list of {role, content}, may stand in place of `prompt`. chosen and rejected may be
such lists too: replies to the prompt, or whole conversations, whose common beginning it then is.
An empty cell or text is nothing. lore/text/layouts.py has the other ways to write a comparison that are
read as they are, docs/apply.md what else a row may hold.
"""

import hashlib
import json
import re
from itertools import chain, islice
from typing import NamedTuple

from lore.common import require
from lore.text.conversations import BESIDE_CONTENT, is_table, read_rows, require_text, spoken
from lore.text.json_text import in_json, is_nothing, listed
from lore.text.layouts import ELSEWHERE, as_messages, opened, renamed, renaming, there
from lore.text.spellings import as_asked, as_read, folded, holds_messages, is_list_of_messages, one_spelling
from lore.upstream_values import as_list, finite_number, whole_number

LISTS = ("prompt", "chosen", "rejected", "response")  # columns that hold a text or messages
LISTS_ALONE = ("messages", "context", "candidates")
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SIDES = {"train": "train"} | dict.fromkeys(("test", "validation", "valid", "eval"), "test")
COLUMNS = (  # of a comparison
    "user_id", "prompt", "messages", "context", "chosen", "rejected", "candidates", "choice", "prompt_id", "split",
)  # fmt: skip
# columns of which no model here would see anything
UNREAD = ("tools", "images", "system", "system_prompt", "history", "chat_template_kwargs")
FIRST_ROWS = 100  # in which a column stands that --columns names
EXACT = 2**53  # a float beyond it has lost the last digits of a whole number
NO_IDS = {"nan", "none", "null", "nat", "<na>", "n/a", "#n/a", "undefined", r"\n"}  # a missing one as text
ROUNDED = re.compile(r"[+-]?\d(\.\d+)?e\+\d+", re.IGNORECASE)  # a long id that a table has shortened
NO_TEXT = ("nan", "<NA>", "NaT")  # a missing text as text
ENDS_IN_MARK = re.compile(  # of a chat template, and the role that it opens
    r"(<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|</s>|<(start|end)_of_turn>|\[/INST\])\s*(assistant|model)?"
    r"(<\|end_header_id\|>)?\s*\Z"
)
BEFORE_REPLY = re.compile(  # what stands there in a dialogue that has become one text
    r"(\bassistant\s*:|(^|\n|\||>)[#*\s]*(assistant|model|gpt|bot|ai|response|answer|a)\s*[:|>\n]|\[/INST\])\W*$",
    re.IGNORECASE,
)


class Judgement(NamedTuple):
    """What one person preferred to what."""

    file_and_line: str
    user_id: str
    prompt_id: str  # as given, else a hash of the prompt
    side: str | None  # train, test, or not said
    chosen: list  # conversation
    rejected: list


def rows_of(path, columns=(), known=COLUMNS, inner=None):
    """Yield (file and line, row) of a file, a folder or a data set of the Hub, as JSON has it.

    columns: OURS=THEIRS, the names here, of those known, of columns that are called otherwise there.
    inner: a column of objects, whose fields stand in the row like others.
    InputError: it is missing, what JSON cannot say, a column that the first rows lack.
    """
    theirs = renaming(columns, known)
    table = is_table(path)
    rows = opened(read_rows(path), inner)
    first_rows = [*islice(rows, FIRST_ROWS)] if theirs else []
    names = {}
    for _, cells in first_rows:
        names |= cells
    for name in theirs.values() if names else ():
        require(name in names, f"{path} has no column {name}, which --columns names; {there(names)}")
    for file_and_line, cells in chain(first_rows, rows):
        cells = renamed(cells, theirs)
        if table:
            cells = {name: list_in_cell(name, text) for name, text in cells.items()}
        yield file_and_line, row_of(file_and_line, cells)


def row_of(file_and_line, cells):
    """A row as JSON has it. InputError: what JSON cannot say, a column that no model here would see."""
    row = {}
    for name, value in cells.items():
        row[name] = in_json(value, f"{file_and_line}, {name}")
        unread = name in UNREAD and not is_nothing(row[name])
        way_out = f"leave the column out, or if it is the prompt: --columns prompt={name}"
        require(not unread, f"{file_and_line}: {name} would not be read; {way_out}")
    return row


def list_in_cell(name, text):
    """The list that a cell of a CSV file holds as JSON: messages, or candidates; else its text."""
    value = listed(text)
    return value if name in LISTS_ALONE or (name in LISTS and is_list_of_messages(value)) else text


def read_judgements(path, columns=()):
    """The Judgements of a file. InputError, with file and line: see `rows_of`, `judgements_of`; no row at all."""
    judgements = judgements_of(rows_of(path, columns))
    require(judgements, f"{path} holds no comparison")
    return judgements


def judgements_of(rows):
    """The Judgements of (file and line, row) pairs, a prompt in two spellings under one id.

    Says how many rows have an empty choice. InputError, with file and line: see `judgement`; ids that differ
    in case alone.
    """
    judgements = []
    prompt_ids = {}
    users = {}
    open_questions = 0
    for file_and_line, row in rows:
        if is_question(row) and is_nothing(row["choice"]):
            open_questions += 1
            continue
        judged = judgement(file_and_line, row)
        user = users.setdefault(judged.user_id.casefold(), judged.user_id)
        same = f"user_id {quoted(judged.user_id)}, and {quoted(user)} before: one person? give both one id"
        require(user == judged.user_id, f"{file_and_line}: {same}")
        if is_nothing(row.get("prompt_id")):
            prompt_id = prompt_ids.setdefault(prompt_key(judged), judged.prompt_id)
            judged = judged._replace(prompt_id=prompt_id)
        judgements.append(judged)
    if open_questions:
        print(f"left out: {open_questions} x an empty choice, a question without an answer")
    return judgements


def hash_of(judgements):
    """SHA-256 of who preferred what to what, in this order: the same however the file writes it."""
    digest = hashlib.sha256()
    for judged in judgements:
        digest.update(json.dumps(judged[1:]).encode())
    return digest.hexdigest()


def first_times(judgements):
    """Numbers of the judgements that were not there before; says how many are there again."""
    first = {}
    for number, judged in enumerate(judgements):
        content = (judged.user_id, as_asked(judged.chosen), as_asked(judged.rejected))
        first.setdefault(content, number)
    print(f"left out: {len(judgements) - len(first)} x the same judgement again")
    return [*first.values()]


def judgement(file_and_line, row):
    """The Judgement of a row. InputError: no person, no text, two replies that are one."""
    row = with_chosen(file_and_line, row)
    for name in ("user_id", "chosen", "rejected"):
        require(name in row, f"{file_and_line}: no {name}; {there(row)}; {ELSEWHERE}")
    user = identifier(file_and_line, row, "user_id")
    require(user is not None, f"{file_and_line}: no user_id")
    row = without_copy(file_and_line, as_messages(row))
    chosen = conversation_of(file_and_line, row, "chosen")
    rejected = conversation_of(file_and_line, row, "rejected")
    require(as_read(chosen) != as_read(rejected), f"{file_and_line}: chosen and rejected are the same")
    asked = common_start(chosen, rejected)
    is_asked = any(message["role"] != "system" for message in asked)
    require(is_asked, f"{file_and_line}: chosen and rejected have no prompt in common")
    prompt = identifier(file_and_line, row, "prompt_id") or text_hash(asked)
    side = row.get("split")
    side = None if is_nothing(side) else str(side).strip()
    is_side = side is None or side in SIDES
    require(is_side, f"{file_and_line}: split is {quoted(row.get('split'))}, not one of {', '.join(SIDES)}")
    return Judgement(file_and_line, user, prompt, SIDES.get(side), chosen, rejected)


def is_question(row):
    """Whether a row is {candidates, choice} and says nothing of chosen."""
    return "choice" in row and not is_nothing(row.get("candidates")) and is_nothing(row.get("chosen"))


def with_chosen(file_and_line, row):
    """A row {candidates, choice} as {chosen, rejected}; any other as it is. InputError: no choice of two."""
    if not is_question(row):
        return row
    candidates = as_list(row["candidates"]) or ()
    require(len(candidates) == 2, f"{file_and_line}: a choice needs two candidates")
    choice = finite_number(row["choice"])  # of a CSV file it is a text
    text = f"choice is {quoted(row['choice'])}, neither 0 nor 1, the better one's number"
    require(choice in (0, 1), f"{file_and_line}: {text}")
    return row | {"chosen": candidates[int(choice)], "rejected": candidates[1 - int(choice)]}


def without_copy(file_and_line, row):
    """The row without messages that say again what prompt and chosen say. InputError: they say something else."""
    said = as_list(row.get("messages"))
    rest = {name: value for name, value in row.items() if name != "messages"}
    if said and said == as_list(row["chosen"]):
        return rest
    if not said or is_nothing(row.get("prompt")):
        return row
    messages = [*map(spoken, messages_of(file_and_line, said, "messages"))]
    chosen = [*map(spoken, conversation_of(file_and_line, rest, "chosen"))]
    text = "both prompt and messages, which says something else; leave one out"
    require(messages in (chosen, chosen[:-1]), f"{file_and_line}: {text}")
    return rest


def reply_of(file_and_line, row):
    """The conversation of a row {prompt | messages, response}, or of messages that end in a reply."""
    row = as_messages(row)
    if is_nothing(row.get("response")) and as_list(row.get("messages")):
        messages = messages_of(file_and_line, row["messages"], "messages")
        return finished(file_and_line, messages, "messages")
    return conversation_of(file_and_line, row, "response")


def candidates_of(file_and_line, row):
    """The conversations of a row {prompt | messages, candidates}."""
    row = as_messages(row)
    candidates = as_list(row.get("candidates"))
    require(candidates, f"{file_and_line}: no list of candidates")
    named = {f"candidates[{number}]": reply for number, reply in enumerate(candidates)}
    return [conversation_of(file_and_line, row | {name: reply}, name) for name, reply in named.items()]


# ------------------------------------------------------------------------------ conversations ---


def conversation_of(file_and_line, row, name):
    """Prompt and reply of a row; `name` is the column of the reply, a text or a list of messages."""
    prompt = prompt_of(file_and_line, row)
    reply = messages_of(file_and_line, row.get(name), name, "assistant")
    text = f"{name} is a text, so a prompt or messages must be there; {there(row)}; {ELSEWHERE}"
    require(prompt or not isinstance(row[name], str), f"{file_and_line}: {text}")
    if [*map(spoken, reply[: len(prompt)])] != [*map(spoken, prompt)]:
        is_reply = reply[0]["role"] == "assistant"
        require(is_reply, f"{file_and_line}: {name} begins with another prompt than the row's")
        reply = prompt + reply
    return finished(file_and_line, reply, name)


def prompt_of(file_and_line, row):
    """What stands before the reply, as messages; none where the row does not say it."""
    given = [name for name in ("prompt", "messages") if not is_nothing(row.get(name))]
    given += ["context"] if is_list_of_messages(row.get("context")) else []
    require(len(given) < 2, f"{file_and_line}: both {' and '.join(given)}")
    return messages_of(file_and_line, row[given[0]], given[0], "user") if given else []


def messages_of(file_and_line, value, name, role=None):
    """A list of messages with all that is in them; a text is one of `role`. InputError: something else.

    This is where a text becomes a conversation, whatever kind of file it comes from.
    """
    where = f"{file_and_line}: {name}"
    if isinstance(value, str) and role:
        text = f"is a list of messages that has become a text, {quoted(value.strip())}"
        require(not holds_messages(value), f"{where} {text}; give the list itself (in a CSV file: as JSON)")
        missing = value.strip() in NO_TEXT or (role == "user" and value.strip() == "None")
        require(not missing, f"{where} is {value.strip()}, what a table writes for a missing text")
        value = [{"role": role, "content": value}]
    messages = [value] if isinstance(value, dict) else as_list(value)
    kind = "nothing" if is_nothing(value) else f"a {type(value).__name__}"
    require(messages, f"{where} is {kind}, neither a text nor a list of messages")
    read = [message_of(where, message) for message in messages]
    require_text(read, f"{file_and_line}, {name}: ")
    return read


def message_of(where, message):
    """A message with all keys of it that say something. InputError: no role, no content."""
    complete = isinstance(message, dict) and {"role", "content"} <= message.keys()
    require(complete, f"{where} holds {quoted(message)}, no role and content")
    role = message["role"]
    content = message["content"]
    require(role in ROLES, f"{where} has a role {quoted(role)}, none of {', '.join(ROLES)}")
    filled = {key: value for key, value in message.items() if not is_nothing(value)}
    if content is None and filled.keys() & {*BESIDE_CONTENT}:
        content = ""  # it calls a tool
    return {"role": role, "content": content} | filled | {"content": content}


def finished(file_and_line, conversation, name):
    """The conversation, if it has a prompt with words and ends in one reply to it."""
    where = f"{file_and_line}: {name}"
    *prompt, reply = conversation
    is_reply = reply["role"] == "assistant" and reply["content"].strip()
    require(is_reply, f"{where} does not end in a reply, or in an empty one")
    require(prompt, f"{where} has no prompt before it")
    role = prompt[-1]["role"]
    asked = prompt[-1]["content"]
    text = "follows another reply: a prompt must not hold the reply already"
    require(role != "assistant", f"{where} {text}")
    require(role != "user" or asked.strip(), f"{where} follows an empty prompt")
    for text in (asked, reply["content"]):
        mark = ENDS_IN_MARK.search(text)
        words = "ends it or its prompt, as a chat template writes: give plain texts, or messages"
        require(not mark, f"{where}: {quoted(mark and mark[0].strip())} {words}")
    # a whole dialogue as text, with this reply behind "Assistant:" or its like
    before = asked.strip().removesuffix(reply["content"].strip())
    repeats = len(before) < len(asked.strip()) and BEFORE_REPLY.search(before)
    require(not repeats, f"{where} stands at the end of its prompt already")
    return conversation


def common_start(chosen, rejected):
    """The messages that two conversations begin with in common."""
    same = 0
    for message, counterpart in zip(chosen, rejected):
        if spoken(message) != spoken(counterpart):
            break
        same += 1
    return chosen[:same]


# ---------------------------------------------------------------------------------------- ids ---


def identifier(file_and_line, row, name):
    """An id as text, in one spelling: 7, 7.0 and "7 " are one. None: there is none. InputError: it is no id."""
    value = row.get(name)
    if is_nothing(value):
        return None
    where = f"{file_and_line}: {name} is {quoted(value)}"
    number = whole_number(value)
    require(isinstance(value, str) or number is not None, f"{where}, neither a text nor a whole number")
    text = one_spelling(str(value) if number is None else str(number))
    missing = text.casefold() in NO_IDS or text == "NA"
    require(not missing, f"{where}: what stands for a missing one is no id; leave the row out")
    lost = ROUNDED.fullmatch(text) or (isinstance(value, float) and abs(value) >= EXACT)
    require(not lost, f"{where}: digits of a long number are lost; store ids as text")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)  # 7.0 of a table that holds numbers as text


def prompt_key(judged):
    """What the prompts of two judgements share that differ in spaces, case or Unicode's forms alone."""
    return text_hash(folded(common_start(judged.chosen, judged.rejected)))


def text_hash(messages):
    return hashlib.sha256(json.dumps([*map(spoken, messages)]).encode()).hexdigest()[:16]


def quoted(value):
    """The beginning of a value, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} .."
