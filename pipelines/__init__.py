"""One file per command; the only folder that sees preprocessing, models and evaluation."""
