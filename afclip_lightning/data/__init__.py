"""Reading of images and masks: files, samples, batches, loaders."""
