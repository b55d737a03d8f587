"""Heads as other projects write them: one file per project, whose `FORMAT` is found, not listed."""
