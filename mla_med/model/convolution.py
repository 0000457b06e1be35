"""One image on a CPU -> oneDNN's convolutions.

PyTorch hands a float32 image to oneDNN only where its batch or its first sizes are large enough
(`use_mkldnn` in ATen's Convolution.cpp), and convolves the small grids of a single patient by a matrix
product of its own, which takes two to thirteen times as long. The numbers differ in the last digits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_plain_inference(x: Tensor) -> bool:
    """Nobody differentiates, traces or exports what is done to this float32 tensor of the CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


class OneDnnConv3d(nn.Conv3d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not is_plain_inference(input):
            return super()._conv_forward(input, weight, bias)
        return torch.mkldnn_convolution(
            input, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


def use_onednn(model: nn.Module) -> None:
    """In place, where PyTorch was built with it; names, weights and training stay as they are."""
    if torch.backends.mkldnn.is_available():
        for module in model.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = OneDnnConv3d


def convolve(conv: nn.Conv3d, norm: nn.BatchNorm3d, x_BCIJK: Tensor) -> Tensor:
    """norm(conv(x)); at inference one convolution, whose weights have the norm in them."""
    if norm.training or not isinstance(conv, OneDnnConv3d) or not is_plain_inference(x_BCIJK):
        return norm(conv(x_BCIJK))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale_D = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    before_D = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    weight = conv.weight * scale_D[:, None, None, None, None]
    return conv._conv_forward(x_BCIJK, weight, before_D * scale_D + norm.bias)


def channels_last(x_BCIJK: Tensor) -> Tensor:
    """As oneDNN's convolutions of few channels like it; elsewhere as it is."""
    if is_plain_inference(x_BCIJK):
        return x_BCIJK.contiguous(memory_format=torch.channels_last_3d)
    return x_BCIJK
