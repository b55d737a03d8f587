"""Inspection of your own images: scores, verdicts, calibrations, a server, exported graphs."""
