"""BIDS datasets: entities, index, filters, selection, sidecars."""
