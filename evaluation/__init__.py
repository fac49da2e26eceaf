"""Evaluation: pure functions on numpy arrays, from metrics to pictures and report pages."""
