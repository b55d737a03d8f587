"""The commands of `python -m afclip_runtime`, and what the commands of both packages share."""
