"""Community Alignment, step 1: from the public conversations to embedded replies.

    python CommunityAlignment/prepare.py                          English, from the Hub; 8B model, a GPU
    python CommunityAlignment/prepare.py --source FILE --lang all         a CSV or parquet file, all languages
    python CommunityAlignment/prepare.py --source FILE --model ENCODER --pooling mean    no GPU

Reads:  facebook/community-alignment-dataset (90,256 conversations, 1.9 GB, CC-BY-4.0), or --source; row
        by row. Its card asks that requests for removal be honoured: results name the file's hash.
Writes: data/comparisons.safetensors (embeddings and head), data/comparisons.parquet (who preferred
        what, and what they said of themselves)
Cost:   minutes and 2 GB for the text, and one pass of the model over each distinct reply with what
        came before it; beginnings that replies share are computed once. Started again, an interrupted
        run goes on. Several GPUs: torchrun --nproc-per-node=8 CommunityAlignment/prepare.py
"""

import hashlib
import json
import sys
import unicodedata
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import InputError, progress, require, require_apart, start
from lore.settings import settings
from lore.text import encoder_settings
from lore.text.conversations import content_hash, find_file, read_csv, read_parquet
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of

# ------------------------------------------------------------------------------- settings ---
source = "facebook/community-alignment-dataset"  # Hub data set, or its file: CSV or parquet
lang = "en"  # en, fr, it, hi, pt; all
min_turns = 1  # conversations with fewer choices are left out
first_turn_only = False  # only the replies to the first prompt
balanced = False  # only the conversations of the file's balanced subset
data = HERE / "data"  # where the embedded comparisons go
limit = 0  # only the first N conversations, for a smoke test; 0 = all
# -------------------------------------------------------------------------------------------
# The model and how it is used: lore/text/encoder_settings.py, flags of this script as well.

FILE = "community_alignment.csv"  # of the Hub data set
TURNS = ("first", "second", "third", "fourth")
LETTERS = ("response_a", "response_b", "response_c", "response_d")
TRAITS = ("age", "gender", "education_level", "political", "ethnicity", "country")
MISSING = ("", "EMPTY STRING", "None", "nan", "NaN")
END = "<|end_of_text|>"  # left at the end of replies
BALANCED = "in_balanced_subset"
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
COLUMNS = ["conversation_id", "assigned_lang", "annotator_id", *(f"annotator_{t}" for t in TRAITS)]
COLUMNS += [f"{turn}_turn_{name}" for turn in TURNS for name in ("prompt", *LETTERS)]
COLUMNS += [f"{turn}_turn_preferred_response" for turn in TURNS]


def text_of(place, row, name):
    """A cell's text; None where it says nothing. InputError: it is no text."""
    value = row[name]
    if value is not None and value == value and not isinstance(value, str):
        raise InputError(f"{place}: {name} is a {type(value).__name__}, not text")
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
        if letter is not None and letter not in LETTERS:
            raise InputError(f"{place}: {letter!r} of the {turn} turn is no reply: {LETTERS}")
        preferred = replies.pop(letter, None)
        if prompt is None or preferred is None:
            if prompt is not None:
                left_out["turns without a preferred reply, and those after them"] += 1
            elif any(said(row[f"{later}_turn_prompt"]) for later in TURNS[number + 1 :]):
                left_out["conversations that miss a turn: what comes after it"] += 1
            break
        others = [text for text in replies.values() if text is not None]
        left_out["replies equal to the preferred one"] += others.count(preferred)
        distinct = [text for text in dict.fromkeys(others) if text != preferred]
        twice = len(others) - others.count(preferred) - len(distinct)
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
    for place, (prompt, preferred, others) in enumerate(choices):
        history = [*history, {"role": "user", "content": prompt}]
        chosen = [*history, {"role": "assistant", "content": preferred}]
        item = digest(history, sorted({preferred, *others}))  # letters differ from person to person
        for other in others:
            rejected = [*history, {"role": "assistant", "content": other}]
            pair = {"turn": first_number + place, "place": place, "group": group, "item": item}
            yield pair | {"chosen": chosen, "rejected": rejected}
        history = chosen


def read(rows, args):
    """The pairs of all conversations as columns; prints what is kept and what is left out.

    InputError: no annotator or conversation id, no reply of the letter that is preferred, nothing left.
    """
    columns, left_out, languages, seen, turns = {}, Counter(), Counter(), set(), 0
    for place, row in progress(rows, "reading"):
        conversation, user = said(row["conversation_id"]), said(row["annotator_id"])
        language = said(row["assigned_lang"])
        if None in (conversation, user, language):
            raise InputError(f"{place}: no conversation_id, annotator_id or assigned_lang")
        languages[language] += 1
        if args.lang not in ("all", language):
            continue
        if args.balanced and not is_true(place, row[BALANCED]):
            left_out["conversations outside the balanced subset"] += 1
            continue
        if conversation in seen:
            left_out["conversations that are there twice"] += 1
            continue
        choices = choices_of(place, row, left_out)
        if len(choices) < max(1, args.min_turns):
            left_out[f"conversations of fewer than {max(1, args.min_turns)} choices"] += 1
            continue
        seen.add(conversation)
        person = {"user_id": user, "lang": language, "conversation": conversation}
        for trait in TRAITS:
            person[trait] = said(row[f"annotator_{trait}"]) or ""
        kept = choices[: 1 if args.first_turn_only else None]
        left_out["choices between equal replies"] += sum(not others for _, _, others in kept)
        for pair in pairs_of(kept, turns):
            for name, value in (person | pair).items():
                columns.setdefault(name, []).append(value)
        turns += len(kept)
        if len(seen) == args.limit:
            break
    reasons = [f"{count} x {reason}" for reason, count in left_out.items() if count]
    if not columns:
        there = ", ".join(f"{name} ({count})" for name, count in languages.most_common())
        why = f"; left out: {'; '.join(reasons)}" if reasons else ""
        raise InputError(
            f"nothing is left of --lang {args.lang}; the file has {there or 'no row'}{why}"
        )
    people, items = len({*columns["user_id"]}), len({*columns["item"]})
    counts = f"{len({*columns['turn']})} choices ({len(columns['turn'])} pairs) on {items} items"
    print(f"{len(seen)} conversations by {people} people: {counts}")
    for reason in reasons:
        print(f"left out: {reason}")
    return columns


def is_true(place, value):
    """Whether a cell says so, True as a CSV file has it, or a bool or number. InputError: neither yes nor no."""
    text = said(value)
    found = TRUTH.get(text.lower()) if text else False
    if found is None:
        raise InputError(f"{place}: {BALANCED} is {value!r}, neither true nor false")
    return found


def main():
    args = settings(globals(), encoder_settings)
    import pandas as pd

    require(args.source, "which conversations? name their file or data set with --source")
    path = Path(args.source)
    if not path.is_file():
        require(path.suffix not in (".csv", ".parquet", ".gz"), f"{path} is no file")
        path = find_file(args.source, FILE)
    wanted = [*COLUMNS, BALANCED] if args.balanced else COLUMNS
    reader = read_parquet if path.suffix.lower() == ".parquet" else read_csv
    frame = pd.DataFrame(read(reader(path, wanted), args))
    encoder = encoder_of(args)
    require_apart([args.data / "comparisons.parquet"], [path])
    args.data.mkdir(parents=True, exist_ok=True)
    made_from = content_hash(path).hex()
    # a choice stays or goes whole where a reply is too long
    embed_split(args.data / "comparisons", frame, encoder, made_from=made_from, whole="turn")
    print(f"embedded comparisons are in {args.data}")


if __name__ == "__main__":
    start(main)
