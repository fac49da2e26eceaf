"""Evaluation: pure functions on numpy arrays, from metrics to figures."""
