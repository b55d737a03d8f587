"""One run of the command line: its options, its folder, and what it trains and tests."""
