"""Which rows train, validate and test. `survey` looks at the rows, chunk by chunk; `rows` decides, from what it saw."""
