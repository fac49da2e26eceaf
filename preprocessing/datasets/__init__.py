"""Data sets: one file per public set, `scans(data, out)`, and the virtual heads of the demo.

`data` is the set's folder; tables that the scans refer to are written below `out`. Healthy subjects get a split from the seed, the rest
is test.
"""

ADAPTERS = ("ct_ich", "ds002748", "ds011", "open_ms", "soop_flair_axial")
