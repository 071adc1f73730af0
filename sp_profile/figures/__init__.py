"""Figures of a profile, its run and its evaluation, for a paper or a README."""

from sp_profile.figures.draw import check_target, draw_figures

__all__ = ["check_target", "draw_figures"]
