"""The trials of a pod share the memory of its GPUs equally, as they do the memory of its container.

Otherwise, one trial that takes all of it would end the others, and JAX takes most of it at once.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tuning_trainer.imports import when_imported

DIVIDED = 0.9
"""The part of a GPU's memory that is divided. CUDA itself needs some hundred MiB for each process."""
JAX = (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
)  # one name since JAX 0.5, the other before
TENSORFLOW = "TF_FORCE_GPU_ALLOW_GROWTH"
"""TensorFlow has no variable for a limit. With this one, it takes only what it needs."""
TORCH = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def share_gpu_memory(trials: int) -> None:
    """Limit this process to its share, in the frameworks that have a limit, unless the user has set one.

    Args:
        trials: how many share the GPUs.
    """
    fraction = DIVIDED / trials
    if not any(name in os.environ for name in JAX):
        os.environ[JAX[1]] = f"{fraction:.3f}"
    os.environ.setdefault(TENSORFLOW, "true")
    if not any("per_process_memory_fraction" in os.environ.get(name, "") for name in TORCH):
        when_imported({"torch.cuda": lambda cuda: _limit_torch(cuda, fraction)})


def _limit_torch(cuda: Any, fraction: float) -> None:
    def limit() -> None:
        for device in range(cuda.device_count()):
            cuda.set_per_process_memory_fraction(fraction, device)

    with contextlib.suppress(AttributeError):
        cuda._lazy_call(limit)  # noqa: SLF001  when the process first uses CUDA, as for seeds of PyTorch's own
