"""What every script needs: errors of one line, a start, a device, whole files, a progress bar."""

import io
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from lore.processes import one_of_several, one_run, rank, world

QUIET_SECONDS = 3.0  # a progress bar appears after this long
LOG_SECONDS = 60.0  # between two lines of it where there is no terminal to draw on


class InputError(ValueError):
    """A mistake in the input, told in one line. Scripts end on it with status 2 and no traceback."""


def require(condition, text):
    """InputError with this text where the condition does not hold."""
    if not condition:
        raise InputError(text)


def start(main):
    """Run a script's main: a mistake in the input is one line on stderr and status 2, Ctrl-C 130."""
    status = 0
    try:
        with redirect_stdout(Output(sys.stdout)), redirect_stderr(Output(sys.stderr)), one_run():
            main()
            sys.stdout.flush()
    # OSError: a folder that cannot be written, a full disk, another process gone; it says which
    except (InputError, OSError) as error:
        print(f"error: {error}", file=Output(sys.stderr))
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=Output(sys.stderr))
        status = 130
    if one_of_several():
        # of several, one was seen to abort while its interpreter was taken down: a library's thread
        # that still lives asks for what is gone (pytorch pull request 179291)
        Output(sys.stdout).flush()
        Output(sys.stderr).flush()
        os._exit(status)
    if status:
        sys.exit(status)


class Output:
    """stdout or stderr for a long run: whatever becomes of its reader, the run goes on.

    A character that the terminal does not know is printed as a question mark; after a reader like
    `| head` has gone, or on a full disk, what is printed goes nowhere, as where there is no stream.
    """

    def __init__(self, stream):
        self.stream = io.StringIO() if stream is None else stream
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="replace")

    def write(self, text):
        try:
            self.stream.write(text)
        except OSError:
            self.close_pipe()

    def flush(self):
        try:
            self.stream.flush()
        except OSError:
            self.close_pipe()

    def close_pipe(self):
        """What is in the buffer still, and all that follows, goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def pick_device(name):
    """auto, cpu, cuda, cuda:1 -> torch.device; each process has its own GPU.

    InputError: no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1")
    if device.type == "cpu":
        return device
    if world() > 1:
        if device.index is not None:
            raise InputError(f"device = {name}: each process takes its own GPU; use cuda or auto")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise InputError(f"device = {device}: this machine shows {count} CUDA devices")
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


def require_apart(written, read):
    """InputError where a path to be written is no file, or one that is read or written as well."""
    taken = {Path(path).resolve(): path for path in read if path}
    for path in map(Path, written):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file: nothing can be written there")
        if path.resolve() in taken:
            other = taken[path.resolve()]
            raise InputError(f"{path} would be written over {other}: another name is needed")
        taken[path.resolve()] = path


@contextmanager
def written_whole(path):
    """A temporary path beside PATH, renamed to PATH when the block ends well, removed otherwise."""
    path = Path(path)
    require_apart([path], [])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    umask = os.umask(0)  # it can be read only by being set
    os.umask(umask)
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask)  # as any new file; safetensors hides its own from the group
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # the name must not be there before the numbers are
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        if getattr(error, "filename", None) is not None:
            raise  # it names the file already
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# Progress
# ------------------------------------------------------------------------------------------------


class LogLines:
    """A stream without a terminal, for a bar that believes it can draw over its last line."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self):
        self.stream.flush()


def progress(steps, text, **options):
    """A tqdm bar for whatever takes longer than a few seconds; in a log file a line now and then."""
    if not sys.stderr.isatty():
        seconds = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
        options = options | seconds | {"file": LogLines(sys.stderr)}
    options = {"delay": QUIET_SECONDS, "leave": False} | options
    return tqdm(steps, desc=text, disable=rank() > 0, **options)
