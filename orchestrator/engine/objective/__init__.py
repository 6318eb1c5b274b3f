"""What a task asks: losses, metrics, and their evaluation over a part of the data. Imports: torch, torchmetrics."""
