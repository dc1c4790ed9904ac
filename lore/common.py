"""What every script needs: errors of one line, a start, a device, whole files, a progress bar."""

import io
import os
import re
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from lore.processes import one_of_several, one_run, rank, world

QUIET_SECONDS = 3.0  # a progress bar appears after this long
LONGEST_ERROR = 700  # characters: room for long paths, where a line of input may have any number
LOG_SECONDS = 60.0  # between two lines of it where there is no terminal to draw on


class InputError(ValueError):
    """A mistake in the input, told in one line. Scripts end on it with status 2 and no traceback."""


def require(condition, text):
    """InputError with this text where the condition does not hold."""
    if not condition:
        raise InputError(text)


@contextmanager
def told_as(text, *kinds, then=""):
    """InputError in place of errors of these kinds: this text, the first line of the error, what to do then."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        silent = "an empty file" if isinstance(error, EOFError) else type(error).__name__
        reason = (str(error).strip().splitlines() or [silent])[0]
        raise InputError(f"{text} ({reason}); {then}" if then else f"{text}: {reason}") from error


def start(main):
    """Run a script's main: a mistake in the input is one line on stderr and status 2, Ctrl-C 130,
    SIGTERM and SIGHUP 143 and 129, with nothing half written left behind."""
    status = 0
    open_streams()
    try:
        with one_run(), ending_on_signals():
            main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        status = 128 + signal.SIGPIPE
    # OSError: a folder that cannot be written, a full disk, another process gone; it says which
    except (InputError, OSError) as error:
        print(f"error: {shortened(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as ending:
        print("interrupted", file=sys.stderr)
        status = 128 + (ending.args[0] if ending.args else signal.SIGINT)
    close_streams()
    if one_of_several():
        # of several, one was seen to abort while its interpreter was taken down: a library's thread
        # that still lives asks for what is gone (pytorch pull request 179291)
        os._exit(status)
    if status:
        sys.exit(status)


def shortened(error):
    """An error as one line of at most LONGEST_ERROR characters, its beginning and its end."""
    text = " ".join(str(error).split())
    if len(text) <= LONGEST_ERROR:
        return text
    half = (LONGEST_ERROR - 4) // 2
    return f"{text[:half]} .. {text[-half:]}"


def open_streams():
    """stdout and stderr take any character, as a question mark where need be, and are there if closed."""
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def close_streams():
    """What is printed still goes out; where its reader has gone or the disk is full, nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def ending_on_signals():
    """A signal that would end the process at once raises KeyboardInterrupt(number), as Ctrl-C does."""

    def interrupt(number, _):
        raise KeyboardInterrupt(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup, for one, has it ignored; one of several may wait for others and could not end
        if signal.getsignal(number) == signal.SIG_DFL and not one_of_several():
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pick_device(name):
    """auto, cpu, cuda, cuda:1 -> torch.device; each process has its own GPU.

    InputError: no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    require(re.fullmatch(r"cpu|cuda(:\d+)?", name), f"device = {name}: use auto, cpu, cuda or cuda:1")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if world() > 1:
        require(device.index is None, f"device = {name}: each process takes its own GPU; use cuda or auto")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count()
    require((device.index or 0) < count, f"device = {device}: this machine shows {count} CUDA devices")
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


def require_apart(written, read):
    """InputError where a path cannot be written, or is read or written as well. Nothing is left there."""
    taken = {behind_links(path): path for path in read if path}
    for path in map(Path, written):
        file = behind_links(path)
        require(file not in taken, f"another name is needed: would be written over {taken.get(file)}: {path}")
        taken[file] = path
        require_writable(path)


def behind_links(path):
    """The file that is read or written, wherever links lead. InputError: they lead in a circle."""
    with told_as(f"{path} is a link that leads nowhere", OSError, RuntimeError):
        return Path(path).resolve()


def require_writable(path):
    """InputError where no file can be written: a folder, a device, write-protected, a folder that is none."""
    file = behind_links(path)
    try:
        if file.exists():
            require(file.is_file(), f"{path} is no file: nothing can be written there")
            protected = not file.stat().st_mode & 0o222
            require(not protected, f"{path} is write-protected; name another file")
        folder = file.parent
        while not folder.exists():
            folder = folder.parent
        require(folder.is_dir(), f"{path} cannot be written: {folder} is no folder")
        trial = folder / half_written(file).name
        trial.touch(exist_ok=False)  # the one way to know it, whoever one is and whatever the disk
        trial.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def half_written(file):
    """The name under which this process writes a file until it is whole."""
    return file.with_name(f"{file.name}.{os.getpid()}.tmp")


@contextmanager
def written_whole(path):
    """A temporary path, renamed to PATH when the block ends well, removed otherwise.

    Where PATH is a link, the link stays and the file behind it is replaced; its permissions stay too.
    """
    require_writable(path)
    file = behind_links(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = half_written(file)
    temporary.touch()
    mode = (file if file.exists() else temporary).stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors hides its own files from the group
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # the name must not be there before the numbers are
        os.replace(temporary, file)
    except (SafetensorError, OSError) as error:
        if getattr(error, "filename", None) is not None:
            raise  # it names the file already
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# Progress
# ------------------------------------------------------------------------------------------------


def progress(steps, text, **options):
    """A tqdm bar for whatever takes longer than a few seconds; in a log file a line now and then."""
    stream = sys.stderr
    if not stream.isatty():

        def write(text):  # the bar believes that it can draw over its last line
            if text.strip():
                stream.write(text.strip() + "\n")

        lines = SimpleNamespace(write=write, flush=stream.flush)
        options = options | {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "file": lines}
    options = {"delay": QUIET_SECONDS, "leave": False} | options
    return tqdm(steps, desc=text, disable=rank() > 0, **options)
