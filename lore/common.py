"""What every script shares: one-line errors, settings as flags, device and memory, whole files, a progress bar."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from lore.processes import one_run, rank, world

QUIET_SECONDS = 3.0  # a progress bar appears after this long


class InputError(ValueError):
    """A mistake in the input, told in one line. Scripts end on it with status 2 and no traceback."""


def progress(steps, text):
    """A bar for whatever takes longer than a few seconds."""
    return tqdm(steps, desc=text, delay=QUIET_SECONDS, leave=False, disable=rank() > 0)


@contextmanager
def written_whole(path):
    """A temporary path beside PATH, renamed to PATH when the block ends well and removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    os.umask(umask := os.umask(0))
    try:
        yield temporary
        temporary.chmod(
            0o666 & ~umask
        )  # as any new file; safetensors would hide its own from the group
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # the name must not be there before the numbers are
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        if getattr(error, "filename", None) is not None:
            raise
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def pick_device(name):
    """auto, cpu, cuda, cuda:1 -> torch.device; each process has its own GPU. InputError: no such device."""
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        )
    except RuntimeError as error:
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and world() > 1:
        if device.index is not None:
            raise InputError(f"device = {name}: each process takes its own GPU; use cuda or auto")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device = {device}: this machine shows {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def memory(device):
    """Bytes that this process can have: of its GPU, or of the machine within the limits that are set."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    page, beside = os.sysconf("SC_PAGE_SIZE"), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    limits = [page * os.sysconf("SC_PHYS_PAGES") / beside]  # processes of this run share a machine
    groups = (
        Path("/proc/self/cgroup").read_text().split() if Path("/proc/self/cgroup").exists() else []
    )
    for _, kind, path in (
        line.split(":", 2) for line in groups if line.count(":") > 1
    ):  # of a container, of a job
        if kind not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if kind else "memory.max"
        group = Path("/sys/fs/cgroup", kind, path.strip("/"))
        for file in (folder / name for folder in (group, *group.parents)):
            if file.exists() and (text := file.read_text().strip()).isdigit():
                limits.append(int(text) / beside)
    if Path("/proc/self/statm").exists():
        import resource

        used = [page * int(pages) for pages in Path("/proc/self/statm").read_text().split()]
        for kind, taken in (
            (resource.RLIMIT_AS, used[0]),
            (resource.RLIMIT_DATA, used[5]),
        ):  # ulimit -v and -d
            if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                limits.append(limit - taken)
    return min(limits)


def start(main):
    """Run a script's main: a mistake in the input ends it with one line on stderr and status 2, Ctrl-C with 130."""
    try:
        with one_run():
            main()
    except (
        InputError,
        OSError,
    ) as error:  # OSError: a folder that cannot be written, a full disk; it names the file
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
