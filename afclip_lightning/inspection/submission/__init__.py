"""What MVTec AD 2's server scores: maps and masks of images whose labels it alone has, written, checked and packed."""
