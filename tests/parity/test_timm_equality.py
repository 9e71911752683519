"""Our models and timm's port of the same weights agree to the last digits, whichever way the weights go."""

import pytest
import timm
import torch

from davit import create_model
from davit.checkpoint import load_checkpoint


@pytest.mark.parametrize("size", ["tiny", *(pytest.param(s, marks=pytest.mark.long) for s in ("small", "base"))])
def test_logits_equal_timms_in_both_directions(size):
    torch.manual_seed(1)
    ours = create_model(f"DaViT_{size}").eval()
    theirs = timm.create_model(f"davit_{size}").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # zero biases and unit norms would hide a mix-up
            parameter.add_(0.02 * torch.randn_like(parameter))
    image = torch.randn(1, 3, 96, 120)

    load_checkpoint(ours, theirs.state_dict())
    with torch.no_grad():
        expected, actual = theirs(image), ours(image)
    assert expected.std() > 0.1
    assert (actual - expected).abs().max() <= 1e-5

    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        load_checkpoint(theirs, ours.state_dict())
        assert (ours(image) - actual).abs().max() > 1e-3
        assert (theirs(image) - ours(image)).abs().max() <= 1e-5
