"""The dataset classes, which `data.class_path` may name."""
