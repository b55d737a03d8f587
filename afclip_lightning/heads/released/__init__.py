"""Formats of other projects' heads: one module per project. Its `FORMAT` is found and registered nowhere."""
