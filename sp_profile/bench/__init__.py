"""Measurements of the kernels, of one attention layer and of a whole prefill; `sp-run bench`."""
