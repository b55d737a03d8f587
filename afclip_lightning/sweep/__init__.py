"""A search for the best options of `fit`, by workers here or on a cluster."""
