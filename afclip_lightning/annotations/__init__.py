"""Shapes as annotation tools draw them: what pixels they mark, how they are read and written."""
