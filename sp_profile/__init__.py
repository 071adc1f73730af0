"""The measuring half: calibration, similarity, clustering, artefacts and comparison."""
