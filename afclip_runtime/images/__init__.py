"""Images on disk: found, read in every kind of file, as 8-bit RGB."""
