"""Data sets: one file per public set, and the virtual heads of the demo.

Each file of a public set has `scans(data, out)`. `data` is the set's folder; tables that the scans
refer to are written below `out`. Where a set names no splits, healthy subjects get one from the
seed, and the rest is test.
"""

ADAPTERS = ("ct_ich", "ds002748", "ds011", "lgg_flair", "open_ms", "soop_flair_axial")
