"""The frozen CLIP: towers, weights, preprocessing, tokenizers, and features on disk."""
