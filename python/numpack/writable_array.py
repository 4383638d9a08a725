"""The types behind `NumPack.writable_batch_mode`, where older releases had them."""

from numpack._writable import WritableArray, WritableBatchMode

__all__ = ["WritableArray", "WritableBatchMode"]
