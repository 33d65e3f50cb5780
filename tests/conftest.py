"""Triton kernels run under its interpreter where there is no GPU: decided here, before anything imports Triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
