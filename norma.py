"""Norma finds what should not be there in a brain CT or MRI."""

from __future__ import annotations

__version__ = "0.1.0"
