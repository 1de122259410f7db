"""Brain-JEPA: parcel series, placed by functional gradients."""
