"""What is measured on the frozen model before ranks are planned."""
