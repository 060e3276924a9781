"""The command line: one small module per command; each fills a config and calls one function."""
