"""Verdicts on images: scores, maps, thresholds, tables."""
