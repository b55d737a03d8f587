"""Searches the best options of `fit`, with workers on this machine or on a cluster."""
