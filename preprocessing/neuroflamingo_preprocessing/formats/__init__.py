"""File formats: NIfTI, MGH, DICOM, zarr."""
