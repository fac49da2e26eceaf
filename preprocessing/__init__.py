"""Scans in, model-space arrays out, and back."""
