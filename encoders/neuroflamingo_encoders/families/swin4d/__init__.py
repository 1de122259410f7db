"""SwiFT and NeuroSTORM: runs in 4D windows."""
