"""PRISM, step 2: from clean dialogues to embedded comparisons.

    python PRISM/generate-prism-embeddings.py                                     8B reward model, one GPU
    python PRISM/generate-prism-embeddings.py --limit 20                          the first 20 dialogues only
    python PRISM/generate-prism-embeddings.py --model ENCODER --pooling mean      no GPU, no reference

Reads:  data/dialogues.jsonl, made by prepare.py
Writes: data/prism.safetensors (embeddings and head), data/prism.parquet (who preferred what, in
        which dialogue)
Cost:   one pass of the model over each dialogue: every turn of its chosen path is read off that
        pass, and each rejected reply branches off it. 8 kB of disk per reply for the 8B model. An
        interrupted run goes on when it is started again.
        Several GPUs: torchrun --nproc-per-node=8 PRISM/generate-prism-embeddings.py
"""

import hashlib
import sys
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import require, start
from lore.settings import settings
from lore.text import encoder_settings
from lore.text.conversations import read_json_lines
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of

# ------------------------------------------------------------------------------- settings ---
data = HERE / "data"  # the dialogues, and where the embedded comparisons go
limit = 0  # only the first N dialogues, for a smoke test; 0 = all
# -------------------------------------------------------------------------------------------
# The model and how it is used: lore/text/encoder_settings.py, flags of this script as well.


def is_turn(turn):
    """Whether it is one of prepare.py: a question, the chosen reply, and those that were not."""
    if not isinstance(turn, dict) or not isinstance(turn.get("rejected"), list):
        return False
    return all(isinstance(text, str) for text in (turn.get("prompt"), turn.get("chosen"), *turn["rejected"]))


def comparisons(row):
    """Yield one record per rejected reply of a dialogue: both conversations, from the first question on."""
    history = []
    for number, turn in enumerate(row["turns"]):
        asked = [*history, {"role": "user", "content": turn["prompt"]}]
        chosen = [*asked, {"role": "assistant", "content": turn["chosen"]}]
        for reply in turn["rejected"]:
            rejected = [*asked, {"role": "assistant", "content": reply}]
            record = {"user_id": row["user_id"], "dialogue": row["dialogue"], "turn": number}
            yield record | {"chosen": chosen, "rejected": rejected}
        history = chosen


def main():
    args = settings(globals(), encoder_settings)
    import pandas as pd

    source = args.data / "dialogues.jsonl"
    hint = "make it with: python PRISM/prepare.py"
    require(source.exists(), f"{source} is missing; {hint}")
    encoder = encoder_of(args)
    dialogues = list(islice(read_json_lines(source), args.limit or None))
    records = []
    for where, row in dialogues:
        whole = {"dialogue", "user_id", "turns"} <= row.keys() and isinstance(row["turns"], list)
        require(whole and all(map(is_turn, row["turns"])), f"{where}: no dialogue with its turns; {hint}")
        records += comparisons(row)
    require(records, f"{source} holds no comparison")
    made_from = hashlib.sha256(source.read_bytes()).hexdigest()
    embed_split(args.data / "prism", pd.DataFrame(records), encoder, made_from=made_from)
    print(f"the comparisons of {len(dialogues)} dialogues are in {args.data}")


if __name__ == "__main__":
    start(main)
