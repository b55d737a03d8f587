"""What abnormal items look like, in sentences: a base by category, and a description of each training image."""
