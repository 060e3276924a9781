"""Images in and out: reading, finding and saving files, and the way from pixels to tensors and back."""
