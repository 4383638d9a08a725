"""What the bytes of a store mean. Functions of bytes: no file is touched here.

The statement of the format in words is ``spec/npk-format.md``.
"""
