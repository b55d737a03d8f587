"""Medical volumes: NIfTI, NRRD, MetaImage and DICOM, cut into slices, and maps of slices put back."""

SLICES = "slices.jsonl"  # of a set of slices: a line per slice, which `Volumes` and `Table` read
