"""What the hardware decides: number formats, layouts, clocks, memory, peak speed. Imports: torch."""
