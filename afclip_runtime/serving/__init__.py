"""The page on which images are judged."""
