"""Functional MRI: runs, confounds, denoising, parcellation, CIFTI, quality."""
