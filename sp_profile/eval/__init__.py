"""Evaluation: every method on the same prompts, paired with dense attention."""
