"""Training objectives, each a small function or frozen module of its own."""
