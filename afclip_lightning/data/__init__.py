"""How images and masks are read: files, samples, batches, loaders."""
