"""A family of models that exists nowhere else, added as docs/extending.md says.

`upstream.py` is what transformers and vLLM would bring; `layout.py` and `model.py` are
the two files of a newcomer.
"""
