"""What the machine gives: processes, whole files, memory, precision."""
