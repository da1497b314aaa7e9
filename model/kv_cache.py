"""Where the pages of keys and values live. Which page belongs to whom is the scheduler's business."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import LlamaConfig


class KVCache:
    """Keys and values of all layers in pages of `page_size` token slots.

    keys, values: [layers, pages, page size, H, d] in the model's dtype. A slot is page * page_size + offset.
    """

    def __init__(
        self, config: LlamaConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_hidden_layers, num_pages, page_size, config.num_attention_heads, config.head_dim)
        self.num_pages = num_pages
        self.page_size = page_size
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._gathered = [torch.empty(0, dtype=dtype, device=device) for _ in range(2)]

    @staticmethod
    def bytes_per_page(config: LlamaConfig, page_size: int, dtype: torch.dtype) -> int:
        """Bytes that one page takes over all layers, keys and values together."""
        return 2 * config.num_hidden_layers * page_size * config.hidden_size * dtype.itemsize

    def clear(self, pages: Tensor) -> None:
        """Zero pages [P] before their first write. Attention reads whole pages and masks what is not written
        yet, but a NaN left there by a broken request would get through: NaN times 0 is NaN.
        """
        self.keys.index_fill_(1, pages, 0)
        self.values.index_fill_(1, pages, 0)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Put key and value [N, H, d] of one layer into slots [N]."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, value)

    def read(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of block tables [..., P] as [..., P * page_size, H, d], good until the next read.

        index_select copies whole pages; indexing with `pages` copies number by number, four times slower on
        a CPU. It copies to the same memory again and again: fresh memory would cost more than the copy.
        """
        shape = (*pages.shape[:-1], -1, *self.keys.shape[-2:])
        size = pages.numel() * self.keys[0, 0].numel()
        if size > len(self._gathered[0]):
            with torch.inference_mode(False):
                self._gathered = [buffer.new_empty(size) for buffer in self._gathered]
        key, value = (buffer[:size].view(-1, *self.keys.shape[2:]) for buffer in self._gathered)
        torch.index_select(self.keys[layer], 0, pages.flatten(), out=key)
        torch.index_select(self.values[layer], 0, pages.flatten(), out=value)
        return key.view(shape), value.view(shape)
