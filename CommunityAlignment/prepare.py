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

import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import progress, require, start
from lore.settings import settings
from lore.splits import require_replaceable
from lore.text import encoder_settings
from lore.text.conversations import content_hash, find_file, read_csv, read_parquet
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of
from public_file import BALANCED, COLUMNS, choices_of, is_true, pairs_of, person_of

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


def read(rows, args):
    """The pairs of all conversations as columns; prints what is kept and what is left out.

    InputError: no annotator or conversation id, no reply of the letter that is preferred, nothing left.
    """
    columns = {}
    left_out = Counter()
    languages = Counter()
    conversations = set()
    turns = 0
    for place, row in progress(rows, "reading"):
        person = person_of(place, row)
        conversation = person["conversation"]
        languages[person["lang"]] += 1
        if args.lang not in ("all", person["lang"]):
            continue
        choices = wanted(place, row, conversation in conversations, args, left_out)
        if not choices:
            continue
        conversations.add(conversation)
        left_out["choices between equal replies"] += sum(not distinct for *_, distinct in choices)
        for pair in pairs_of(choices, turns):
            for name, value in (person | pair).items():
                columns.setdefault(name, []).append(value)
        turns += len(choices)
        if len(conversations) == args.limit:
            break
    reasons = [f"{count} x {reason}" for reason, count in left_out.items() if count]
    there = ", ".join(f"{name} ({count})" for name, count in languages.most_common()) or "no row"
    why = f"; left out: {'; '.join(reasons)}" if reasons else ""
    require(columns, f"nothing is left of --lang {args.lang}; the file has {there}{why}")
    people = len({*columns["user_id"]})
    items = len({*columns["item"]})
    counts = f"{len({*columns['turn']})} choices ({len(columns['turn'])} pairs) on {items} items"
    print(f"{len(conversations)} conversations by {people} people: {counts}")
    for reason in reasons:
        print(f"left out: {reason}")
    return columns


def wanted(place, row, again, args, left_out):
    """The choices of a conversation, [] and counted where it is not wanted. again: it has been there before."""
    if args.balanced and not is_true(place, row[BALANCED]):
        left_out["conversations outside the balanced subset"] += 1
        return []
    if again:
        left_out["conversations that are there twice"] += 1
        return []
    choices = choices_of(place, row, left_out)
    least = max(1, args.min_turns)
    if len(choices) < least:
        left_out[f"conversations of fewer than {least} choices"] += 1
        return []
    return choices[:1] if args.first_turn_only else choices


def main():
    args = settings(globals(), encoder_settings)
    import pandas as pd

    require(args.source, "which conversations? name their file or data set with --source")
    path = Path(args.source)
    if not path.is_file():
        require(path.suffix not in (".csv", ".parquet", ".gz"), f"{path} is no file")
        path = find_file(args.source, FILE)
    require_replaceable(args.data / "comparisons", path)
    wanted = [*COLUMNS, BALANCED] if args.balanced else COLUMNS
    reader = read_parquet if path.suffix.lower() == ".parquet" else read_csv
    frame = pd.DataFrame(read(reader(path, wanted), args))
    encoder = encoder_of(args)
    made_from = content_hash(path).hex()
    # a choice stays or goes whole where a reply is too long
    embed_split(args.data / "comparisons", frame, encoder, made_from=made_from, whole="turn")
    print(f"embedded comparisons are in {args.data}")


if __name__ == "__main__":
    start(main)
