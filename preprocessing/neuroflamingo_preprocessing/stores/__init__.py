"""Stores: many prepared scans on disk, written in parallel, resumable, indexed."""
