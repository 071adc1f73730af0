"""Kernel backends: the torch reference and Triton, behind one protocol (`base.Kernels`)."""
