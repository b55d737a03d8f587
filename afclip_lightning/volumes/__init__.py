"""Medical volumes: NIfTI, NRRD, MetaImage and DICOM, cut into slices, and maps of slices put back."""
