"""The methods, one file each: frozen features in, a score and a map out."""
