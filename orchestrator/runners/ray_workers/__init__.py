"""Workers on Ray: finding or starting Ray, placing and restarting workers, carrying their letters."""
