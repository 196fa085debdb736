"""Plans and adapters: read from anywhere, checked, and written in the forms that other tools read."""
