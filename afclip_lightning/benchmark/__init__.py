"""Benchmarks: a matrix of methods, datasets, seeds and shots, run cell by cell into one table."""
