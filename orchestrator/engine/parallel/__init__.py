"""Several workers, one model: DDP and FSDP, what they send, and one format of state. Imports: torch."""
