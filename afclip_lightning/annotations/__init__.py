"""Shapes of annotation tools: the pixels that they mark, reading and writing."""
