"""A run of the command line: its options, its folder, its training and its tests."""
