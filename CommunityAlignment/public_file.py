"""A row of Community Alignment's public file: who chose, among which replies to what."""

import hashlib
import json
import unicodedata

from lore.common import require

TURNS = ("first", "second", "third", "fourth")
LETTERS = ("response_a", "response_b", "response_c", "response_d")
TRAITS = ("age", "gender", "education_level", "political", "ethnicity", "country")
MISSING = ("", "EMPTY STRING", "None", "nan", "NaN")
END = "<|end_of_text|>"  # left at the end of replies
BALANCED = "in_balanced_subset"
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
COLUMNS = ["conversation_id", "assigned_lang", "annotator_id", *(f"annotator_{t}" for t in TRAITS)]
for turn in TURNS:
    COLUMNS += [f"{turn}_turn_{name}" for name in ("prompt", *LETTERS, "preferred_response")]


def text_of(place, row, name):
    """A cell's text; None where it says nothing. InputError: it is no text."""
    value = row[name]
    is_text = value is None or value != value or isinstance(value, str)
    require(is_text, f"{place}: {name} is a {type(value).__name__}, not text")
    return said(value)


def said(value):
    """A cell as text; None where it says nothing, in whichever way."""
    text = "" if value is None or value != value else str(value).replace(END, "").strip()
    return None if text in MISSING else text


def choices_of(place, row, left_out):
    """[(prompt, preferred reply, [other replies])] of a conversation, as far as turn follows turn."""
    choices = []
    for number, turn in enumerate(TURNS):
        prompt = text_of(place, row, f"{turn}_turn_prompt")
        letter = text_of(place, row, f"{turn}_turn_preferred_response")
        replies = {name: text_of(place, row, f"{turn}_turn_{name}") for name in LETTERS}
        is_reply = letter is None or letter in LETTERS
        require(is_reply, f"{place}: {letter!r} of the {turn} turn is no reply: {LETTERS}")
        preferred = replies.pop(letter, None)
        if prompt is None or preferred is None:
            if prompt is not None:
                left_out["turns without a preferred reply, and those after them"] += 1
            elif any(said(row[f"{later}_turn_prompt"]) for later in TURNS[number + 1 :]):
                left_out["conversations that miss a turn: what comes after it"] += 1
            break
        texts = [text for text in replies.values() if text is not None]
        left_out["replies equal to the preferred one"] += texts.count(preferred)
        distinct = [text for text in dict.fromkeys(texts) if text != preferred]
        twice = len(texts) - texts.count(preferred) - len(distinct)
        left_out["rejected replies that are there twice"] += twice
        choices.append((prompt, preferred, distinct))
    return choices


def digest(*texts):
    """Of texts in one form of Unicode: an accent may be a character of its own, or not."""
    form = unicodedata.normalize("NFKC", json.dumps(texts, ensure_ascii=False))
    return hashlib.sha256(form.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def pairs_of(choices, first_number):
    """Yield the pairs of a conversation as dictionaries; a choice's number is its turn's."""
    history = []
    group = digest(" ".join(choices[0][0].casefold().split()))  # whoever wrote it
    for place, (prompt, preferred, distinct) in enumerate(choices):
        history = [*history, {"role": "user", "content": prompt}]
        chosen = [*history, {"role": "assistant", "content": preferred}]
        item = digest(history, sorted({preferred, *distinct}))  # letters differ between people
        for reply in distinct:
            rejected = [*history, {"role": "assistant", "content": reply}]
            pair = {"turn": first_number + place, "place": place, "group": group, "item": item}
            yield pair | {"chosen": chosen, "rejected": rejected}
        history = chosen


def person_of(place, row):
    """What a row says of its conversation and its person. InputError: no id of one, no language."""
    person = {"user_id": "annotator_id", "lang": "assigned_lang", "conversation": "conversation_id"}
    person = {name: said(row[column]) for name, column in person.items()}
    require(None not in person.values(), f"{place}: no conversation_id, annotator_id or assigned_lang")
    return person | {trait: said(row[f"annotator_{trait}"]) or "" for trait in TRAITS}


def is_true(place, value):
    """Whether a cell says so, True as a CSV file has it, or a bool or number. InputError: neither yes nor no."""
    text = said(value)
    truth = TRUTH.get(text.lower()) if text else False
    require(truth is not None, f"{place}: {BALANCED} is {value!r}, neither true nor false")
    return truth
