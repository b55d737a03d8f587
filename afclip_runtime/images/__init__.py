"""Finding image files and reading them as 8-bit RGB."""
