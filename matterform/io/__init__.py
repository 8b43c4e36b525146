"""Files of structures and tables: one reader for every format, writers that leave a file whole or not at all."""
