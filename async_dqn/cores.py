"""What this machine's CPU offers, cores and instructions, and how many processes evaluate on it."""

import os
from pathlib import Path

MOST_EVALUATING = 16  # processes


def evaluation_processes(workers: int, cores: int) -> int:
    """How many processes evaluate beside `workers`: on the idle cores, and a tenth of those."""
    return min(MOST_EVALUATING, max(1, cores - workers, round(workers / 10)))


def usable_cores(root: Path = Path("/")) -> int:
    """Whole cores this process may use: CPU affinity, cut by the cgroup quota (v1 or v2)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([float(cores), *_cgroup_quotas(root)])))


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether the CPU multiplies bfloat16 natively; elsewhere it is slower than float32."""
    flags = set(_read_words(root / "proc/cpuinfo"))
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _cgroup_quotas(root: Path) -> list[float]:
    """CPU quotas in cores, of this process's control group and of all groups above it."""
    mounts = root / "sys/fs/cgroup"
    quotas = []
    for line in _read_words(root / "proc/self/cgroup", "\n"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        inner = Path(group.lstrip("/"))
        for level in [inner, *inner.parents]:
            # Version 2 has one hierarchy and one file; version 1 mounts by controller.
            quotas.append(_read_words(mounts / level / "cpu.max"))
            for mount in ("cpu", "cpu,cpuacct"):
                v1 = mounts / mount / level
                quota, period = v1 / "cpu.cfs_quota_us", v1 / "cpu.cfs_period_us"
                quotas.append(_read_words(quota) + _read_words(period))
    pairs = [pair for pair in quotas if len(pair) == 2 and pair[0].isdigit() and int(pair[1])]
    return [int(quota) / int(period) for quota, period in pairs]


def _read_words(path: Path, separator: str | None = None) -> list[str]:
    try:
        return path.read_text().strip().split(separator)
    except (OSError, ValueError):
        return []
