"""How weights change: optimizers, schedules, averages, and when to stop. Imports: torch."""
