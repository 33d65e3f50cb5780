"""What model cards are written from and made of, and their way to the hub."""
