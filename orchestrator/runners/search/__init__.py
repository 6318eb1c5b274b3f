"""The deciding side of hyperparameter search: which trials there are, and which go on. Runs nothing itself."""
