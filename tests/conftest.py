"""What several test files need: small random users, the scripts as a user starts them, a tiny reward model."""

import importlib.util
import io
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "apply")]

import lore
from lore.report import statistics

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # what is compared below is computed in float32, on the CPU
if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that a test starts
    torch.set_num_threads(1)  # one of several that test at a time

SHARED = Path(os.environ.get("LORE_SHARED", ROOT.parent / "shared")) / "data"

TURN = "<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n"
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}" + TURN + "{% endfor %}"


def random_users(counts, d, seed=0, dtype=torch.float32):
    """List of per-user (m_i, d) differences, with enough signal to learn from and enough noise not to be separable."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(d, generator=generator, dtype=dtype)
    users = []
    for count in counts:
        x = torch.randn(count, d, generator=generator, dtype=dtype)
        flip = torch.sign(x @ direction + 2 * torch.randn(count, generator=generator, dtype=dtype))
        users.append(x * flip.unsqueeze(1))
    return users


def run_script(*arguments, cwd=ROOT):
    """A script as a user starts it, in a process of its own: (exit status, stdout, stderr)."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def folder_first(folder):
    """Imports find the scripts of this folder, and forget them again: every dataset folder has its own train_basis."""
    path = sys.path[:]
    before = {*sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in {*sys.modules} - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}/"):
                del sys.modules[name]


def load_script(script):
    """A script as a module, its main not run."""
    with folder_first(script.parent):
        spec = importlib.util.spec_from_file_location(script.stem.replace("-", "_"), script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextmanager
def rough_intervals(draws):
    """So many draws for each interval, which no test of a script looks at."""
    before = statistics.RESAMPLES
    statistics.drawn_users.cache_clear()
    statistics.RESAMPLES = draws
    try:
        yield
    finally:
        statistics.RESAMPLES = before
        statistics.drawn_users.cache_clear()


def call_script(script, *arguments, draws=100):
    """The same within this process, which saves the seconds that importing torch takes."""
    out, err, status, argv = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = [str(script), *map(str, arguments)]
    try:
        with (
            folder_first(Path(script).parent),
            rough_intervals(draws),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ending:
        status = ending.code or 0
    finally:
        sys.argv = argv
    return status, out.getvalue(), err.getvalue()


def printed(script, *arguments):
    """What a script prints, called in the same way, where it ends well."""
    status, out, err = call_script(script, *arguments)
    assert status == 0, err
    return out


def bits_are_promised():
    """Whether the matrix library promises to round a column whatever stands beside it: MKL's strict mode."""
    return lore.is_intel() and "STRICT" in os.environ.get("MKL_CBWR", "")


@pytest.fixture
def assert_rounded_alike(record_property):
    """Of tensors: equal bit for bit where that is promised; elsewhere close, and the run's end tells."""

    def check(what, pairs, **tolerance):
        pairs = [tuple(map(torch.as_tensor, pair)) for pair in pairs]
        equal = sum(torch.equal(*pair) for pair in pairs)
        if bits_are_promised():
            assert equal == len(pairs), f"{what}: {equal} of {len(pairs)} are equal"
            return
        record_property("rounding", f"{what}: {equal} of {len(pairs)} equal bit for bit")
        for pair in pairs:
            assert torch.allclose(*pair, **tolerance), what

    return check


def pytest_terminal_summary(terminalreporter):
    """What holds on this machine, where nothing is promised."""
    told = {}
    for report in terminalreporter.getreports("passed"):
        told |= {line: None for name, line in report.user_properties if name == "rounding"}
    for line in told:
        terminalreporter.write_line(f"rounding, not promised here: {line}")


def assert_one_line_error(done, *words):
    """Exit status 2, nothing but one line on stderr, and that line names what matters."""
    status, _, stderr = done
    lines = stderr.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), stderr
    for word in words:
        assert word in lines[0], stderr


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer trained here, with a chat template that writes its own special tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    text = [
        "the cat sat on the mat and the dog lay beside it",
        "I met a friend, she said hello; I said nothing.",
    ]
    bpe.train_from_iterator(text * 20, vocab_size=400, special_tokens=special)
    as_llama = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bpe._tokenizer.post_processor = as_llama
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, chat_template=CHAT_TEMPLATE, **tokens)


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory, tokenizer):
    """Folder with a tiny, randomly initialised Llama reward model."""
    from tiny import a_model

    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 1}
    folder = tmp_path_factory.mktemp("reward_model")
    return a_model("LlamaForSequenceClassification", folder, tokenizer, num_hidden_layers=2, **tokens)


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory, tokenizer):
    """Folder with a tiny, randomly initialised bidirectional encoder without a head or a chat template."""
    from tiny import a_model

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.02}
    folder = a_model("BertModel", tmp_path_factory.mktemp("text_encoder"), tokenizer, **sizes)
    (folder / "chat_template.jinja").unlink()
    return folder


# ------------------------------------------------------------------------------------------------
# OwnData/ and apply/
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def model(tmp_path_factory, reward_model, tokenizer):
    """The tiny reward model with a special token that its template does not write: to pad with."""
    from transformers import AddedToken, AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(reward_model, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    unused = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    tokenizer.add_tokens([AddedToken(unused, special=True)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, model):
    """Folder with own.jsonl.gz, data/ and results/ of a rank-3 basis."""
    import texts

    folder = tmp_path_factory.mktemp("trained")
    assert texts.prepare(folder, texts.comparisons(), model)[0] == 0
    common = ("--data", folder / "data", "--results", folder / "results", "--min_comparisons", 3)
    fit = ("--solver", "adam", "--num_iterations", 40, "--K_list")
    printed(ROOT / "OwnData/train_basis.py", *common, *fit, 0, 1, 3)
    printed(ROOT / "OwnData/vary_fewshot.py", *common, *fit, 3, "--num_shots", 1, 3, "--trials", 2)
    return folder


@pytest.fixture(scope="session")
def basis(trained):
    return trained / "results/train_basis_K3_alpha0_seed0.safetensors"


@pytest.fixture
def with_deviations(basis, tmp_path):
    """The same basis, but everybody has something of their own."""
    from lore.fit.basis import load_basis, save_basis

    saved = load_basis(basis)
    E, E_unseen = torch.randn(len(saved.everybody), 32).tensor_split([len(saved.user_ids)])
    path = tmp_path / "deviations.safetensors"
    save_basis(path, saved._replace(E=E, E_unseen=E_unseen, deviation_spread=0.1))
    return path


@pytest.fixture
def rows(tmp_path):
    """Four replies to one prompt, in a file."""
    import texts

    replies = ["the cat sat", "nothing", "she said hello", "the dog lay beside it"]
    rows = [{"id": i, "prompt": "the cat?", "response": reply} for i, reply in enumerate(replies)]
    return texts.write(tmp_path / "rows.jsonl", rows)
