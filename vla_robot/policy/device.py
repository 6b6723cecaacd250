"""The device of a name: the one place that says whether it is there, and which GPU "auto" takes."""

from __future__ import annotations

import torch

from vla_robot.core.errors import ContractError
from vla_robot.core.host.device_names import AUTO, device_problem


def torch_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """Return torch's device of a name, with its index if it is a GPU of CUDA.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps", or torch's own object. "auto" takes a GPU of CUDA if torch sees
            one, and the CPU otherwise; Apple's GPU ("mps") is only taken by its name.
        local_rank: index of the GPU that "auto" and "cuda" mean: of several processes on a computer, each has its own.

    Raises:
        ContractError: there is no such name, or no such device on this computer.
    """
    if name == torch.device("meta"):  # only as an object: no recipe names it
        return torch.device("meta")
    if problem := device_problem(str(name) if isinstance(name, torch.device) else name):
        raise ContractError(f"{problem}.")
    if name == AUTO:
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    found = torch.device(name)
    if found.type == "cuda":
        return _gpu(local_rank if found.index is None else found.index)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ContractError(
            f"device is 'mps', but torch {torch.__version__} finds no GPU of Apple's here. Choose 'cpu' or 'auto'."
        )
    return found


def choose_attention(device: torch.device) -> None:
    """Choose the kernels of attention on a device: on CUDA torch's own, flash and memory-efficient, without cuDNN's.

    torch takes cuDNN's first on Hopper. It makes a plan on the host for each batch size and length, which takes longer
    than a pass, and instructions have many lengths. torch keeps the choice for the whole process.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 are worth it: torch has a kernel for them.

    On a CPU without one, of AVX2 alone, they take several times as long as in float32.
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def device_in_words(device: torch.device) -> str:
    """Return a device with the model of its GPU: "cpu", or "cuda:0 (NVIDIA H100 80GB HBM3)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _gpu(index: int) -> torch.device:
    count = torch.cuda.device_count()
    if index < count:
        return torch.device("cuda", index)
    if count:
        there = f"torch sees {count} GPU{'s' if count > 1 else ''}: {', '.join(f'cuda:{n}' for n in range(count))}"
    elif torch.version.cuda is None:
        there = f"torch {torch.__version__} was built without CUDA; install a build with it"
    else:
        there = "torch sees no GPU; `nvidia-smi` shows whether the driver does"
    raise ContractError(f"device is 'cuda:{index}', but {there}. Or choose 'cpu' or 'auto'.")
