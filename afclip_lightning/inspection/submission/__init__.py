"""Writes, checks and packs submissions to MVTec AD 2's server: maps and masks of images with secret labels."""
