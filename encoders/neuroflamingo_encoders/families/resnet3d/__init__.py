"""3D ResNets on structural volumes: MedicalNet and 3D-Neuro-SimCLR."""
