"""Settings of the encoder, stated once: flags of every script that turns text into vectors."""

# ------------------------------------------------------------------------------- settings ---
model = "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"  # Hub reward model, or a local folder
pooling = "last"  # last = last token of a reward model; mean = mean of a text encoder's, no head
head = "score"  # where a reward model keeps its reward head: score, v_head, v_head.summary
device = "auto"  # auto, cpu, cuda, cuda:1
dtype = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU; float32, bfloat16, float16, mixed
attention = "sdpa"  # of transformers: sdpa, eager; with --no-share also flash_attention_2
batch_tokens = 0  # tokens at a time, fewer where memory is short; 0 = 16384 on a GPU, 2048 on a CPU
share = True  # compute once what conversations share; off for a model that refuses it
max_length = 0  # tokens; longer ones lose the oldest part of their prompt; 0 = the model's limit
# -------------------------------------------------------------------------------------------
