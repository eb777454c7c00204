"""The private names of PyTorch that this package needs.

Each is wrapped in one small function. Tested with PyTorch 2.13.
"""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of `torch.func` runs, such as `torch.vmap`."""
    return torch._C._are_functorch_transforms_active()


def is_forward_mode() -> bool:
    """Whether derivatives are computed in forward mode."""
    return forward_ad._current_level >= 0
