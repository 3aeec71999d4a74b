"""What this machine offers: usable cores, instructions for bfloat16, memory, processes."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def usable_cores(root: Path = Path("/")) -> int:
    """Whole cores this process may use: CPU affinity, cut by the cgroup quota (v1 or v2)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([float(cores), *_cgroup_quotas(root)])))


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether the CPU multiplies bfloat16 natively; elsewhere it is slower than float32."""
    flags = set(_read_words(root / "proc/cpuinfo"))
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may still be used, by the machine and by the control groups; None if unknown."""
    words = _read_words(root / "proc/meminfo")
    if "MemAvailable:" not in words:  # not Linux
        return None
    free = [1024 * int(words[words.index("MemAvailable:") + 1])]
    for group in _cgroups("memory", root):
        cached = dict(pair.split() for pair in _read_words(group / "memory.stat", "\n") if pair)
        for names in (("memory.max", "memory.current"), V1_MEMORY):
            for limit, used in _numbers(group, *names):  # the cache of files gives way
                kept = used - sum(
                    int(cached.get(key, 0)) for key in ("inactive_file", "active_file")
                )
                free.append(limit - kept)
    return max(0, min(free))


def free_tasks(root: Path = Path("/")) -> int | None:
    """How many more processes and threads may be started; None if nothing limits them."""
    free = [
        limit - used
        for group in _cgroups("pids", root)
        for limit, used in _numbers(group, "pids.max", "pids.current")
    ]
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.geteuid():  # it does not hold for root
        free.append(limit - _tasks_of(os.geteuid(), root))
    return min(free, default=None)


def _tasks_of(user: int, root: Path) -> int:
    count = 0
    for process in (root / "proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == user:
                count += len(os.listdir(process / "task"))
        except OSError:  # it has ended
            continue
    return count


def _cgroup_quotas(root: Path) -> list[float]:
    """CPU quotas in cores, of this process's control group and of all groups above it."""
    quotas = []
    for group in _cgroups("cpu", root):
        quotas += _numbers(group, "cpu.max")
        quotas += _numbers(group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    return [quota / period for quota, period in quotas if period]


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control group and of all groups above it.

    Version 2 has one hierarchy; version 1 mounts by controller, some of them together.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _read_words(root / "proc/self/cgroup", "\n"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        inner = Path(group.lstrip("/"))
        for level in [inner, *inner.parents]:
            for mount in (".", controller, controllers):
                yield mounts / mount / level


def _numbers(group: Path, *names: str) -> list[tuple[int, int]]:
    """The two numbers in these files, in a list; none where one is missing or no number."""
    words = [word for name in names for word in _read_words(group / name)]
    return [(int(words[0]), int(words[1]))] if len(words) == 2 and words[0].isdigit() else []


def _read_words(path: Path, separator: str | None = None) -> list[str]:
    try:
        return path.read_text().strip().split(separator)
    except (OSError, ValueError):
        return []
