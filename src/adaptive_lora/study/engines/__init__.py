"""Engines that train a study's runs: one after another through PEFT, or many at a time in a bank."""
