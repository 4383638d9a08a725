"""The operating system: files of one directory, locks. Nothing here knows what the bytes mean."""
