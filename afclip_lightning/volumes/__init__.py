"""Medical volumes (NIfTI, NRRD, MetaImage, DICOM): cutting into slices, and stacking of slice maps into volumes."""

SLICES = "slices.jsonl"  # manifest of a set of slices, one line per slice, read by `Volumes` and `Table`
