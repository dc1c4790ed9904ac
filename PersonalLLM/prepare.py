"""PersonalLLM, step 1: from prompts with eight scored responses each to embedded ones.

    python PersonalLLM/prepare.py                                   both Hub splits, 8B reward model, one GPU
    python PersonalLLM/prepare.py --source FOLDER --limit 100           train* and test* files, 100 prompts of each
    python PersonalLLM/prepare.py --model ENCODER --pooling mean        no GPU: a text encoder, without a reference head

Reads:  namkoong-lab/PersonalLLM (train 9,402 prompts, test 1,000), or --source: parquet, CSV or JSON lines
Writes: data/{train,test}.safetensors (embeddings and head), data/{train,test}.parquet (ten scores of each response)
Cost:   one pass of the model over each prompt with its responses; 8 kB of disk per response for the 8B model, 680 MB in
        all. A finished side is kept when it is run again; a side that was interrupted starts over.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402

from embeddings import Encoder, embed_split, exchange, read_json_lines  # noqa: E402
from utils import InputError, pick_device, settings, start  # noqa: E402

# --------------------------------------------------------------------------------------------------- settings ---
source = "namkoong-lab/PersonalLLM"  # Hub data set, or a folder with files of its columns, named train* and test*
model = "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"  # Hub reward model, or a local folder
pooling = "last"  # last = last token of a reward model; mean = mean of a text encoder's tokens, no reference head
data = HERE / "data"  # where the embedded responses go
device = "auto"  # auto, cpu, cuda, cuda:1
dtype = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU; float32, bfloat16, float16
attention = "sdpa"  # attention kernel of transformers: sdpa, eager, flash_attention_2
batch_tokens = 16384  # tokens at a time, padding included; fewer where the memory does not suffice
share = True  # compute a prompt once for all its responses; needs plainly causal attention
max_length = 0  # tokens; longer conversations lose their oldest; 0 = what the model takes
limit = 0  # only the first N prompts of each side, for a smoke test; 0 = all
# --------------------------------------------------------------------------------------------------------------------

REWARD_MODELS = (  # whose scores a person mixes, in the order of the published code
    "gemma_2b", "gemma_7b", "mistral_raft", "llama3_sfairx", "oasst_deberta_v3", "beaver_7b", "oasst_pythia_7b",
    "oasst_pythia_1b", "mistral_ray", "mistral_weqweasdas",
)  # fmt: skip


def read_side(source, side):
    """(where, data frame in the upstream columns) of one side, from local files or the Hub. InputError: none there."""
    import pandas as pd

    if not Path(source).is_dir():
        from datasets import load_dataset

        try:
            return f"{source}, {side}", load_dataset(source, split=side).to_pandas()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{source} is no folder here, and its {side} split cannot be fetched: {reason}") from error
    as_frame = lambda path: pd.DataFrame([row for _, row in read_json_lines(path)])
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": as_frame, ".json": as_frame, ".gz": as_frame}
    files = sorted(file for file in Path(source).rglob(f"{side}*") if file.suffix in readers)
    if not files:
        raise InputError(f"{source} holds no file {side}*.parquet, .csv or .jsonl")
    frames = []
    for file in files:
        try:
            frames.append(readers[file.suffix](file))
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {str(error).strip().splitlines()[0]}") from error
    return ", ".join(map(str, files)), pd.concat(frames, ignore_index=True)


def responses(where, prompts):
    """Upstream rows -> a row per response: prompt number, response number, conversation, ten scores.

    InputError: fewer than two responses, a missing column, a score that is no number, a response that is no text.
    """
    import pandas as pd

    count = 0
    while f"response_{count + 1}" in prompts:
        count += 1
    if count < 2:
        raise InputError(f"{where}: {count} columns response_1, response_2, ..; a comparison needs two responses")
    numbers = range(1, count + 1)
    needed = ["prompt", *(f"response_{i}_{name}" for i in numbers for name in REWARD_MODELS)]
    if missing := [column for column in needed if column not in prompts]:
        raise InputError(f"{where}: missing columns {', '.join(missing[:5])}" + (" .." if len(missing) > 5 else ""))
    parts = []
    for i in numbers:
        scores = prompts[[f"response_{i}_{name}" for name in REWARD_MODELS]].apply(pd.to_numeric, errors="coerce")
        bad = np.argwhere(~np.isfinite(scores.to_numpy(dtype=float)))
        if len(bad):
            row, column = bad[0]
            raise InputError(f"{where}: row {row} has no number in {scores.columns[column]}")
        for name in ("prompt", f"response_{i}"):
            for row, text in enumerate(prompts[name]):
                if not isinstance(text, str):
                    raise InputError(f"{where}: row {row}: {name} is a {type(text).__name__}, not text")
        talks = [
            exchange(prompt.strip(), reply.strip())
            for prompt, reply in zip(prompts["prompt"], prompts[f"response_{i}"])
        ]
        place = {"prompt": np.arange(len(prompts)), "response": i - 1, "reply": talks}
        parts.append(pd.DataFrame(place).join(scores.set_axis(REWARD_MODELS, axis=1).astype(float)))
    return pd.concat(parts).sort_values(["prompt", "response"], ignore_index=True)


def main():
    args = settings(globals())
    encoder = Encoder(
        args.model, args.pooling, pick_device(args.device), args.dtype, args.attention, args.max_length,
        args.batch_tokens, args.share,
    )  # fmt: skip
    args.data.mkdir(parents=True, exist_ok=True)
    sides = {}
    for side in ("train", "test"):
        where, prompts = read_side(args.source, side)
        sides[side] = responses(where, prompts.head(args.limit) if args.limit else prompts)
        print(f"{side}: {sides[side]['prompt'].nunique()} prompts, {sides[side]['response'].nunique()} responses each")
    for side, frame in sides.items():
        embed_split(args.data / side, frame, encoder, columns=["reply"])
    print(f"embedded responses are in {args.data}")


if __name__ == "__main__":
    start(main)
