"""PersonalLLM, step 1: from prompts with eight scored responses each to embedded ones.

    python PersonalLLM/prepare.py                                   both Hub splits, 8B model, one GPU
    python PersonalLLM/prepare.py --source FOLDER --limit 100           train.* and test.*, 100 of each
    python PersonalLLM/prepare.py --model ENCODER --pooling mean        no GPU: a text encoder, no head

Reads:  namkoong-lab/PersonalLLM (train 9,402 prompts, test 1,000), or --source: parquet, CSV or
        JSON lines
Writes: data/{train,test}.safetensors (embeddings and head), data/{train,test}.parquet (ten scores
        of each response)
Cost:   one pass of the model over each prompt with its responses; 8 kB of disk per response for the
        8B model, 680 MB in all. Started again, an interrupted run goes on.
        Several GPUs: torchrun --nproc-per-node=8 PersonalLLM/prepare.py
"""

import re
import sys
from itertools import chain, islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lore.common import require, start
from lore.settings import settings
from lore.text import encoder_settings
from lore.text.conversations import data_files, exchange, fetch_rows, read_rows
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of
from lore.upstream_values import finite_number
from people import REWARD_MODELS

# ------------------------------------------------------------------------------- settings ---
source = "namkoong-lab/PersonalLLM"  # Hub data set, or a folder: train.* and test.*
data = HERE / "data"  # where the embedded responses go
limit = 0  # only the first N prompts of each side, for a smoke test; 0 = all
# -------------------------------------------------------------------------------------------
# The model and how it is used: lore/text/encoder_settings.py, flags of this script as well.

RESPONSE = re.compile(r"response_\d+")
FILE = re.compile(r"(-\d+-of-\d+(-[0-9a-f]{16})?)?(\.parquet|\.csv|\.jsonl?(\.gz)?)")  # behind train or test


def upstream_rows(source, side, data):
    """(place, row) of one side's prompts: the Hub's, or those of one local file or of the parts of one.

    InputError: no such file, or several, of which it is not known whether they hold the same.
    """
    if not Path(source).is_dir():
        return fetch_rows(source, split=side)
    files = []
    for file in Path(source).rglob(f"{side}*"):
        written_here = data.resolve() in file.resolve().parents
        if FILE.fullmatch(file.name.removeprefix(side)) and not written_here:
            files.append(file)
    files = data_files(files)
    kinds = {(file.parent, "-of-" in file.name, *file.suffixes) for file in files}
    there = ", ".join(map(str, files)) or "none"
    wanted = f"one {side}.parquet, .csv or .jsonl, or its parts {side}-00000-of-00001.."
    require(len(kinds) == 1, f"{source}: {wanted}, is needed: {there}")
    return chain.from_iterable(map(read_rows, files))


def responses(rows):
    """Upstream rows -> a record per response: prompt and response number, conversation, ten scores.

    InputError: fewer than two responses, another number of them than in the first row, a text or
    score that is missing, or is none.
    """
    records = []
    count = 0
    for prompt, (place, row) in enumerate(rows):
        texts = [name for name in row if RESPONSE.fullmatch(name)]
        count = count or len(texts)
        only = f"{count} columns response_1, response_2, .."
        require(count > 1, f"{place}: {only}; a comparison needs two responses")
        require(len(texts) == count, f"{place}: {len(texts)} responses, the first row has {count}")
        for name in ("prompt", *texts):
            require(isinstance(row.get(name), str), f"{place}: {name} is missing or no text")
        for i in range(1, count + 1):
            require(f"response_{i}" in row, f"{place}: response_{i} is missing")
            talk = exchange(row["prompt"].strip(), row[f"response_{i}"].strip())
            record = {"prompt": prompt, "response": i - 1, "reply": talk}
            for name in REWARD_MODELS:
                record[name] = finite_number(row.get(f"response_{i}_{name}"))
                require(record[name] is not None, f"{place} has no number in response_{i}_{name}")
            records.append(record)
    return records


def main():
    args = settings(globals(), encoder_settings)
    import pandas as pd

    encoder = encoder_of(args)
    sides = {}
    questions = []
    for side in ("train", "test"):
        rows = islice(upstream_rows(args.source, side, args.data), args.limit or None)
        records = responses(rows)
        require(records, f"{args.source}: no {side} prompts")
        prompts = records[-1]["prompt"] + 1
        print(f"{side}: {prompts} prompts, {len(records) // prompts} responses each")
        sides[side] = pd.DataFrame(records)
        questions.append({record["reply"][0]["content"] for record in records})
    shared = len(questions[0] & questions[1])
    print(f"{'warning: ' * bool(shared)}prompts on both the training and the test side: {shared}")
    for side, frame in sides.items():
        embed_split(args.data / side, frame, encoder, columns=["reply"], whole="prompt")
    print(f"embedded responses are in {args.data}")


if __name__ == "__main__":
    start(main)
