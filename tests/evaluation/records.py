"""Scans as they stand in a results file."""


def scan(name, label, score, **more):
    """A row as evaluation writes it; without a lesion mask unless told."""
    row = {"id": name, "subject": name, "label": label, "pathology": "", "score": score}
    row |= {"brain_voxels": 1000, "above_voxels": 10, "mask_voxels": 8, "false_positive_ml": 0.5}
    return row | more


def lesion(name, score, dice, overlap, mask, truth, **more):
    about = {
        "dice": dice,
        "overlap_voxels": overlap,
        "mask_voxels": mask,
        "truth_voxels": truth,
        "voxel_ap": dice / 2,
        "hd95": 3.0,
    }
    return scan(name, "abnormal", score, lesions=[], candidates=[], **(about | more))
