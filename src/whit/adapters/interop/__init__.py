"""Adapters in other programs' formats: PEFT's TinyLoRA and LoRA, merged weights, llama.cpp's GGUF LoRA.

Each writer has a reader or a check beside it: what is written is read back by the other program's own
loader, and its logits are compared with whit's (`check.py`). Knows nothing of the command line.
"""
