"""All opinions as a table, and what they say of scans as a decathlon datalist with its files."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/api")
