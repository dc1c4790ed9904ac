"""Your own people, step 1: from a file of comparisons to embedded ones.

    python OwnData/prepare.py --source FILE                            8B model, one GPU
    python OwnData/prepare.py --source FILE --model REWARD_MODEL           any other with a linear head
    python OwnData/prepare.py --source FILE --model ENCODER --pooling mean     no GPU: a text encoder
    python OwnData/prepare.py --source FILE --columns user_id=annotator prompt=question

Reads:  --source: JSON lines or a JSON list, CSV or cells parted by semicolons or tabs, each plain or gzip,
        parquet, a folder of datasets.save_to_disk, or a data set of the Hub as NAME:SPLIT or
        NAME:CONFIG:SPLIT. It has user_id; prompt, or messages; chosen, rejected; and, if you like,
        prompt_id (equal for comparisons that are held out together; default: the text of the prompt) and
        split (train or test). lore/text/input_rows.py has examples; convert.py turns other layouts.
Writes: data/comparisons.safetensors (embeddings and head), data/comparisons.parquet (who preferred
        what)
Cost:   one pass of the model over each distinct conversation. Started again, an interrupted run goes
        on. Several GPUs: torchrun --nproc-per-node=8 OwnData/prepare.py
"""

import sys
from operator import attrgetter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import require, start
from lore.settings import settings
from lore.splits import require_replaceable
from lore.text import encoder_settings
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of
from lore.text.input_rows import first_times, hash_of, prompt_key, read_judgements

# ------------------------------------------------------------------------------- settings ---
source = ""  # the comparisons: a file, a folder, or NAME:SPLIT of the Hub
columns = []  # OURS=THEIRS, where columns have other names than those above: user_id=annotator
data = HERE / "data"  # where the embedded comparisons go
limit = 0  # only the first N comparisons, for a smoke test; 0 = all
# -------------------------------------------------------------------------------------------
# The model and how it is used: lore/text/encoder_settings.py, flags of this script as well.


def records(judgements):
    """Comparisons as a data frame; prints what is kept and what is left out."""
    import pandas as pd

    side, prompt_id = attrgetter("side"), attrgetter("prompt_id")
    some = "some rows have a split and some have none"
    require_one(judgements, lambda _: None, lambda judged: judged.side is not None, some)
    apart = "what was trained on cannot be tested on: one split for each prompt, or none"
    require_one(judgements, prompt_id, side, apart)
    # or it could be both trained on and tested on
    same = "the same prompt: give both one id, or leave prompt_id out"
    require_one(judgements, prompt_key, prompt_id, same)
    rows = first_times(judgements)
    frame = pd.DataFrame(judgements).rename(columns={"prompt_id": "prompt"}).iloc[rows].assign(row=rows)
    people, prompts = frame["user_id"].nunique(), frame["prompt"].nunique()
    print(f"{len(frame)} comparisons by {people} people on {prompts} prompts")
    return frame[["user_id", "prompt", "side", "row", "chosen", "rejected"]]


def require_one(judgements, key, value, words):
    """InputError where two judgements that have one key differ in a value."""
    first_of = {}
    for judged in judgements:
        first = first_of.setdefault(key(judged), judged)
        differ = f"{judged.file_and_line}: {value(judged)}, but {value(first)} in {first.file_and_line}"
        require(value(first) == value(judged), f"{differ}; {words}")


def main():
    args = settings(globals(), encoder_settings)
    require(args.source, "which comparisons? name their file with --source")
    require_replaceable(args.data / "comparisons", args.source)
    judgements = read_judgements(args.source, args.columns)
    encoder = encoder_of(args)
    frame = records(judgements)[: args.limit or None]
    embed_split(args.data / "comparisons", frame, encoder, made_from=hash_of(judgements))
    print(f"embedded comparisons are in {args.data}")


if __name__ == "__main__":
    start(main)
