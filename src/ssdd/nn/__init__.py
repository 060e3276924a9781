"""The networks: plain PyTorch, single device, no I/O, no losses; nothing of ours outside this folder is imported."""
