"""Check what happens where Triton cannot launch."""

import logging
from types import SimpleNamespace

import pytest
import torch

from davit.kernels.triton import support


@pytest.mark.skipif(not support.HAS_TRITON, reason="no Triton for this platform")
def test_a_gpu_on_which_triton_cannot_launch_is_named_once_and_left_to_pytorch(monkeypatch, caplog):
    """As without a C compiler; here the GPU of that number is missing."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tensor = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 97))
    with caplog.at_level(logging.WARNING, logger="davit"):
        assert not support.runs_on(tensor) and not support.runs_on(tensor)
    assert [record.levelname for record in caplog.records if "cuda:97" in record.getMessage()] == ["WARNING"]


@pytest.mark.skipif(not support.HAS_TRITON, reason="no Triton for this platform")
def test_a_gpu_older_than_ampere_is_left_to_pytorch_without_a_word(monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not support.runs_on(SimpleNamespace(is_cuda=True, device=torch.device("cuda", 98)))
    assert not caplog.records
