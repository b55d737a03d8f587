"""One HTML page of a test run or of inspected images, which needs no network and no other file."""
