"""Bytes that this process may use."""

import os
from pathlib import Path

import torch


def memory(device):
    """Bytes that this process can have: of its GPU, or of the machine within the limits set."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of this run on this machine
    return min([machine / beside, *(limit / beside for limit in group_limits()), *own_limits()])


def group_limits():
    """Bytes that a container or a job of a cluster may have (Linux control groups)."""
    groups = Path("/proc/self/cgroup")
    if not groups.exists():
        return
    for line in groups.read_text().split():
        if line.count(":") < 2:
            continue
        _, kind, path = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if kind else "memory.max"  # of version 1 and 2
        group = Path("/sys/fs/cgroup", kind, path.strip("/"))
        for folder in (group, *group.parents):
            file = folder / name
            if file.exists() and (text := file.read_text().strip()).isdigit():
                yield int(text)


def own_limits():
    """Bytes that `ulimit -v` and `ulimit -d` leave to this process."""
    used = Path("/proc/self/statm")
    if not used.exists():
        return
    import resource  # not on every system

    pages = used.read_text().split()
    for kind, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - os.sysconf("SC_PAGE_SIZE") * int(pages[column])
