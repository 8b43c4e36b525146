"""Files of structures and tables: one reader for all formats, and atomic writers."""
