"""Settings × seeds: many trainings, on this machine or a cluster, each a run directory."""
