"""What is trained, and on which loss: one file a stage."""
