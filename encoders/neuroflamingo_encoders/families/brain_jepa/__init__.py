"""Brain-JEPA: parcel series, with positions from functional gradients."""
