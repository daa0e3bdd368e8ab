"""Where weights come from: the package, the user's cache, a download, a path, or a Hugging Face
id.
"""

from samfast.checkpoints.hashes import file_sha256
from samfast.checkpoints.known_checkpoints import KNOWN, Known
from samfast.checkpoints.lookup import listing, resolve
from samfast.user_cache import cache_dir

__all__ = ["KNOWN", "Known", "cache_dir", "file_sha256", "listing", "resolve"]
