"""Jobs on a cluster through Ray's Jobs API: package, submit, look, follow, stop, wait."""
