"""Where weights come from: the package, the user's cache, a download, a path, or a Hugging Face id."""

from samfast.weights.cache import cache_dir
from samfast.weights.hashes import file_sha256
from samfast.weights.known import KNOWN, Known
from samfast.weights.lookup import listing, resolve

__all__ = ["KNOWN", "Known", "cache_dir", "file_sha256", "listing", "resolve"]
