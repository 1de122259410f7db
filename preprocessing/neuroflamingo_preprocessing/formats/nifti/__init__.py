"""NIfTI: header, orientation, voxels, runs."""
