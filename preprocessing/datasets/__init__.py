"""Data sets: one file per public set, and the virtual heads of the demo.

Each file of a public set has `scans(data, out, modality)`: the scans of the set's folder `data`,
and by id why one is left out. What the scans refer to and the set does not have is written below
`out`. Where a set names no splits, healthy subjects get one from the seed, and the rest is test, or
all are left to 'make preprocess'. `modality` chooses among the sequences of a set that has several;
one that has no choice says its own as MODALITY.
"""

# those with figures in docs/results
ADAPTERS = ("ct_ich", "ds002748", "ds011", "lgg_flair", "open_ms", "soop_flair_axial")

READERS = (
    *ADAPTERS,
    *("adni", "atlas_v2", "brats2020", "brats2021", "brats2023", "cq500", "fastmri_plus"),
    *("isles2022", "ixi", "mood", "mslub", "oasis1", "wmh2017"),
)
