"""Structures from files to padded arrays: readers, data sets, training examples."""
