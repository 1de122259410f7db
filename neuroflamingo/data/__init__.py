"""Training data: manifests, what is kept of them, and how samples become token ids, labels and scans."""
