"""Image encoder and mask decoder in few passes over memory: see `encoder.py` and `decoder.py`."""
