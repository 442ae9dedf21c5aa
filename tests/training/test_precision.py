"""The data type of tuning follows the hardware."""

import pytest
import torch

from mooring.training.precision import compute_dtype


@pytest.mark.parametrize(
    ("gpu", "cpu", "expected"), [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")]
)
def test_bfloat16_is_used_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, cpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu)
    assert compute_dtype() == expected
