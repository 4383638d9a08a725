"""Named arrays in a directory: opens and creates stores, looks arrays up, commits changes."""
