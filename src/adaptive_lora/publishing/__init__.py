"""What goes out of a study: its adapters and plans in the forms that tools read, and from there to the hub."""
