"""Those who do a study's runs: one by one through the reference engine, or many at a time in a bank."""
