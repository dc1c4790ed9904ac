"""PersonalLLM, step 1: from prompts with eight scored responses each to embedded ones.

    python PersonalLLM/prepare.py                                   both Hub splits, 8B reward model, one GPU
    python PersonalLLM/prepare.py --source FOLDER --limit 100           train.* and test.* files, 100 prompts of each
    python PersonalLLM/prepare.py --model ENCODER --pooling mean        no GPU: a text encoder, without a reference head

Reads:  namkoong-lab/PersonalLLM (train 9,402 prompts, test 1,000), or --source: parquet, CSV or JSON lines
Writes: data/{train,test}.safetensors (embeddings and head), data/{train,test}.parquet (ten scores of each response)
Cost:   one pass of the model over each prompt with its responses; 8 kB of disk per response for the 8B model, 680 MB in
        all. Started again, an interrupted run goes on. Several GPUs: torchrun --nproc-per-node=8 PersonalLLM/prepare.py
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np

from lore.common import InputError, start
from lore.conversations import exchange, read_json_lines
from lore.embeddings import embed_split
from lore.encoder import encoder_of
from lore.settings import settings

# --------------------------------------------------------------------------------------------------- settings ---
source = "namkoong-lab/PersonalLLM"  # Hub data set, or a folder with train.* and test.* (parquet, csv, jsonl)
model = "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"  # Hub reward model, or a local folder
pooling = "last"  # last = last token of a reward model; mean = mean of a text encoder's tokens, no reference head
head = "score"  # where a reward model keeps its reward head: score, v_head, v_head.summary
data = HERE / "data"  # where the embedded responses go
device = "auto"  # auto, cpu, cuda, cuda:1
dtype = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU; float32, bfloat16, float16
attention = "sdpa"  # attention of transformers: sdpa, eager; with --no-share also flash_attention_2
batch_tokens = 0  # tokens at a time, fewer where the memory does not suffice; 0 = 16384 on a GPU, 2048 on a CPU
share = True  # compute a prompt once for all its responses; off for a model that refuses it
max_length = (
    0  # tokens; longer conversations lose the oldest part of their prompt; 0 = what the model takes
)
limit = 0  # only the first N prompts of each side, for a smoke test; 0 = all
# --------------------------------------------------------------------------------------------------------------------

REWARD_MODELS = (  # whose scores a person mixes, in the order of the published code
    "gemma_2b", "gemma_7b", "mistral_raft", "llama3_sfairx", "oasst_deberta_v3", "beaver_7b", "oasst_pythia_7b",
    "oasst_pythia_1b", "mistral_ray", "mistral_weqweasdas",
)  # fmt: skip


def read_side(source, side, data):
    """[(where, data frame in the upstream columns)] of one side, from local files or the Hub. InputError: none."""
    import pandas as pd

    if not Path(source).is_dir():
        from datasets import load_dataset

        try:
            return [(f"{source}, {side}", load_dataset(source, split=side).to_pandas())]
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{source} is no folder here, and its {side} split cannot be fetched: {reason}"
            ) from error
    name = re.compile(rf"{side}(-\d+-of-\d+)?(\.parquet|\.csv|\.jsonl?(\.gz)?)")
    files = [file for file in sorted(Path(source).rglob(f"{side}*")) if name.fullmatch(file.name)]
    files = [
        file for file in files if data.resolve() not in file.resolve().parents
    ]  # not what this script has written
    if not files or len({file.suffix for file in files}) > 1:
        found = ", ".join(map(str, files)) or "none"
        raise InputError(
            f"{source}: {side}.parquet, .csv or .jsonl (or {side}-00000-of-00001..) of one kind: {found}"
        )
    sides = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                frame = pd.read_parquet(file)
            elif file.suffix == ".csv":
                frame = pd.read_csv(file, dtype=str, keep_default_na=False)  # "None" may be a reply
            else:
                frame = pd.DataFrame([row for _, row in read_json_lines(file)])
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"{file} cannot be read: {str(error).strip().splitlines()[0]}"
            ) from error
        sides.append((str(file), frame))
    return sides


def responses(where, prompts):
    """Upstream rows -> a row per response: prompt number, response number, conversation, ten scores.

    InputError: fewer than two responses, a missing column, a score that is no number, a response that is no text.
    """
    import pandas as pd

    named = (re.match(r"response_(\d+)(_|$)", column) for column in prompts)
    numbers = range(1, max((int(match[1]) for match in named if match), default=0) + 1)
    if len(numbers) < 2:
        raise InputError(
            f"{where}: {len(numbers)} columns response_1, response_2, ..; a comparison needs two responses"
        )
    texts = ["prompt", *(f"response_{i}" for i in numbers)]
    needed = [*texts, *(f"response_{i}_{name}" for i in numbers for name in REWARD_MODELS)]
    if missing := [column for column in needed if column not in prompts]:
        raise InputError(
            f"{where}: missing columns {', '.join(missing[:5])}"
            + (" .." if len(missing) > 5 else "")
        )
    for name in texts:
        for row, text in enumerate(prompts[name]):
            if not isinstance(text, str):
                raise InputError(f"{where}: row {row}: {name} is a {type(text).__name__}, not text")
    parts = []
    for i in numbers:
        scores = prompts[[f"response_{i}_{name}" for name in REWARD_MODELS]].apply(
            pd.to_numeric, errors="coerce"
        )
        bad = np.argwhere(~np.isfinite(scores.to_numpy(dtype=float)))
        if len(bad):
            row, column = bad[0]
            raise InputError(f"{where}: row {row} has no number in {scores.columns[column]}")
        pairs = zip(prompts["prompt"], prompts[f"response_{i}"])
        talks = [exchange(prompt.strip(), reply.strip()) for prompt, reply in pairs]
        place = {"prompt": np.arange(len(prompts)), "response": i - 1, "reply": talks}
        parts.append(pd.DataFrame(place).join(scores.set_axis(REWARD_MODELS, axis=1).astype(float)))
    return pd.concat(parts).sort_values(["prompt", "response"], ignore_index=True)


def together(frames, limit):
    """Response rows of several files as one, prompts numbered through; the first `limit` prompts, 0 = all."""
    import pandas as pd

    first = np.cumsum([0, *(frame["prompt"].nunique() for frame in frames)])
    frame = pd.concat(
        [part.assign(prompt=part["prompt"] + n) for part, n in zip(frames, first)],
        ignore_index=True,
    )
    return frame[frame["prompt"] < limit] if limit else frame


def main():
    args = settings(globals())
    encoder = encoder_of(args)
    args.data.mkdir(parents=True, exist_ok=True)
    sides = {}
    for side in ("train", "test"):
        files = read_side(args.source, side, args.data)
        sides[side] = together([responses(where, prompts) for where, prompts in files], args.limit)
        counts = [sides[side][name].nunique() for name in ("prompt", "response")]
        print(f"{side}: {counts[0]} prompts, {counts[1]} responses each")
        if not counts[0]:
            raise InputError(f"{args.source}: no {side} prompts")
    questions = [{talk[0]["content"] for talk in frame["reply"]} for frame in sides.values()]
    both = len(questions[0] & questions[1])
    print(f"{'warning: ' if both else ''}prompts on both the training and the test side: {both}")
    for side, frame in sides.items():
        embed_split(args.data / side, frame, encoder, columns=["reply"])
    print(f"embedded responses are in {args.data}")


if __name__ == "__main__":
    start(main)
