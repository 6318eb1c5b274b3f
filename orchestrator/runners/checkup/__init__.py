"""What `orchestrator doctor` looks at, on this machine and on a cluster."""
