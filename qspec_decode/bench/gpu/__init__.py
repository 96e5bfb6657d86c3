"""What `qspec bench gpu` runs: every kernel checked against float64, then timed beside its peers."""
