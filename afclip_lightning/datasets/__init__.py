"""The datasets: what `data.class_path` may name."""
