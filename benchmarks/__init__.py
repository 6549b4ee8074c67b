"""Every number of the README, measured beside its peers: `python -m benchmarks [part ...]`."""
