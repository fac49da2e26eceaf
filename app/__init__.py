"""The review app: open a scan, see whether and where it is anomalous, give an opinion."""
