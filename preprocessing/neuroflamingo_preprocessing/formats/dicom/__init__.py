"""DICOM: files, series, conversion, verification."""
