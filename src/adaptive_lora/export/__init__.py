"""Plans and adapters in the forms that other tools read."""
