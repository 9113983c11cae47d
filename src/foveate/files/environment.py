"""What must stand beside every number: versions and hardware."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from foveate.version import __version__


def facts(model: Any) -> dict[str, Any]:
    """Versions, hardware, dtype and attention backend, as JSON values."""
    parameter = next(model.parameters())
    device = parameter.device
    hardware: dict[str, Any] = {"device": str(device), "processor": _processor(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return {
        "foveate": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **hardware,
        "threads": torch.get_num_threads(),
        "load_average": _load(),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load() -> float | None:
    """Average number of running processes in the last minute: what else kept the machine busy."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
