"""Sparse-prefill methods, one small module each, behind one protocol (`base.Pattern`)."""
