"""The device that networks run on: one that can do nothing is refused, one that is full is no wrong setting."""

from typing import Any

import pytest
import torch

from tasks.__main__ import _known
from tasks.errors import InfrastructureError, UserError
from tasks.inference import device, is_out_of_memory

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.00 GiB is "
    "free. Of the allocated memory 14 GiB is allocated by PyTorch. If reserved but unallocated memory is large, see …"
)


def failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose first kernel fails."""

    def zeros(*_: Any, device: torch.device) -> torch.Tensor:
        assert device.type == "cuda"
        raise error

    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cuda")
    monkeypatch.setattr(torch, "zeros", zeros)


def test_a_gpu_that_torch_has_no_code_for_is_named(monkeypatch: pytest.MonkeyPatch):
    failing(RuntimeError("CUDA error: no kernel image is available for execution on the device"), monkeypatch)
    with pytest.raises(UserError, match=r"UNDERSTUDY_DEVICE is 'cuda': .*no kernel image.*\n.*auto or cpu"):
        device()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(FULL), torch.AcceleratorError("CUDA error: out of memory\nCompile with …")],
)
def test_a_full_gpu_is_no_wrong_setting(error: Exception, monkeypatch: pytest.MonkeyPatch):
    failing(error, monkeypatch)
    with pytest.raises(type(error)):
        device()


def test_a_full_gpu_ends_a_stage_with_what_to_do():
    known = _known(torch.OutOfMemoryError(FULL))
    assert isinstance(known, UserError)
    assert str(known).startswith(
        "a GPU's memory is full: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"
    )
    assert "1.00 GiB is free.\n  → lower `batch` of its training, or set UNDERSTUDY_SLOTS=1" in str(known)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_other_errors_are_told_apart(error: Exception, full: bool):
    assert is_out_of_memory(error) == full
    assert (_known(error) is not None) == full


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error",
    ],
)
def test_a_gpu_that_fails_is_worth_another_try_elsewhere(words: str):
    known = _known(RuntimeError(words))
    assert isinstance(known, InfrastructureError)
    first, remedy = str(known).splitlines()
    assert first == f"a GPU failed: {words.splitlines()[0]}"
    assert "run again: finished epochs are still there" in remedy


def test_an_assertion_in_a_kernel_is_a_defect_of_ours():
    assert _known(RuntimeError("CUDA error: device-side assert triggered")) is None


def test_one_gpu_for_several_ranks_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cuda:1")
    with pytest.raises(
        UserError, match=r"'cuda:1', but a training has 2 devices\n.*set it to cuda; CUDA_VISIBLE"
    ):
        device()
