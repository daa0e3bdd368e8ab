"""Every exception samfast raises on a user's mistake, and its one warning, ImageWarning.

    SamfastError
    ├── InputError (ValueError, AssertionError)
    │   │                                a value handed in cannot be used
    │   ├── ImageError                   a file or an array is not a usable image
    │   │   └── ImageSizeError           an image of more pixels than the caller allows
    │   ├── PromptError                  points, labels, boxes or masks do not fit
    │   ├── EmbeddingsError              embeddings of another model or preprocessing, or unreadable
    │   └── DatasetError                 a folder or annotation file is not a usable data set
    │       └── SourceGoneError          images that were listed cannot be reached any more
    ├── CheckpointError                  a checkpoint cannot be used
    │   ├── CheckpointNotFoundError (FileNotFoundError)
    │   └── DownloadError                the download failed or its hash is wrong
    ├── RecipeError (ValueError)         an unknown recipe or field value
    │   └── UnsupportedRecipeError       the recipe needs what this device or model lacks
    ├── OutputError (OSError)            a result cannot be written
    ├── UsageError (RuntimeError, AssertionError)
    │                                    something was called before what it needs
    ├── DeviceMemoryError (RuntimeError) the GPU's memory does not suffice; says what to lower
    ├── NumericsError (ArithmeticError)  an answer holds NaN or infinity
    └── MissingExtraError (ImportError)  an optional dependency is absent; says what to install

Each message says what was wrong, with which file or value, and what to do about it. InputError and
UsageError are AssertionErrors too: `segment_anything` asserts what its callers hand in, and some
projects written for it catch that.
"""


class SamfastError(Exception):
    """Base of every exception that samfast raises on purpose."""


class InputError(SamfastError, ValueError, AssertionError):
    """A value handed to samfast cannot be used."""


class ImageError(InputError):
    """A file, array or tensor is not a usable image."""


class ImageSizeError(ImageError):
    """An image of more pixels than the caller allows, which was not decoded."""


class ImageWarning(UserWarning):
    """Not an error: an image was changed to be used, as from 16 bits to 8; names the image."""


class PromptError(InputError):
    """Points, labels, boxes or masks that do not fit each other or the image."""


class EmbeddingsError(InputError):
    """Embeddings made by another model or another preprocessing, or an unreadable file of them."""


class DatasetError(InputError):
    """A folder or annotation file is not a usable data set."""


class SourceGoneError(DatasetError):
    """Images that were listed cannot be reached any more: the source was moved or unmounted."""


class CheckpointError(SamfastError):
    """A checkpoint is damaged, unsafe, or of another model."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint where one was looked for."""

    __str__ = Exception.__str__


class DownloadError(CheckpointError):
    """A checkpoint could not be downloaded, or what arrived has the wrong SHA-256."""


class RecipeError(SamfastError, ValueError):
    """An unknown recipe name or an unknown value of one of its fields."""


class UnsupportedRecipeError(RecipeError):
    """A recipe that this device, model or installation cannot run."""


class OutputError(SamfastError, OSError):
    """A result could not be written."""

    __str__ = Exception.__str__


class UsageError(SamfastError, RuntimeError, AssertionError):
    """Something was called before what it needs, as predict before set_image."""


class DeviceMemoryError(SamfastError, RuntimeError):
    """The GPU ran out of memory, in smaller pieces too."""


class NumericsError(SamfastError, ArithmeticError):
    """An answer of the model that holds NaN or infinity."""


class MissingExtraError(SamfastError, ImportError):
    """An optional dependency is not installed."""

    __str__ = Exception.__str__


def shown(value: object) -> str:
    """A value for a message: its repr, or its type where that is long or fails."""
    try:
        text = repr(value)
    except Exception:  # a value of the caller's, such as an integer of 5000 digits
        text = ""
    if text and len(text) <= 120 and text.isprintable():
        return text
    shape = getattr(value, "shape", None) if type(value).__module__ == "numpy" else None
    return f"a {type(value).__name__}" + (f" of shape {shape}" if shape is not None else "")


def one_line(error: BaseException) -> str:
    """A library's message without line breaks, to quote inside an error of ours."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
