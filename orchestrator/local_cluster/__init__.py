"""A Ray cluster of several hosts on one machine, with faults to order: see cluster/local/README.md."""
