"""Series from tables, the protocol of an experiment, and windows."""
