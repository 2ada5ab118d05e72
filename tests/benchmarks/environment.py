"""What a benchmark ran on, and the file it writes."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe_machine", "describe_versions", "write_result"]


def describe_machine() -> str:
    """Processor and number of cores that may be used."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def describe_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("schnetpack-softadapt", "schnetpack", "torch", "numba", "numpy", "dscribe"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_result(path: str | Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write machine, versions, rows and more as JSON, under a temporary name first."""
    content = {"machine": describe_machine(), "versions": describe_versions(), "rows": rows, **more}
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
