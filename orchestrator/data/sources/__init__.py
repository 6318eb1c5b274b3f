"""Where rows come from: sources opened as chunks, and their fingerprints."""
